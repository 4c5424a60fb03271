"""corebound bench generate without measuring: how reports become rows, and what is refused."""

import json

import pytest

from corebound.cli.main import main
from corebound.engine.bench import session
from corebound.engine.bench.peers import process
from corebound.engine.bench.peers.adapters.protocol import BenchJob, BenchReport, CaseReport
from corebound.engine.bench.ruler import Reading, Ruler

KEYS = {
    "model", "dtype", "num_ranks", "num_threads", "first_token_ms", "next_token_ms", "tokens_per_s",
    "weight_bytes_per_token", "read_gb_per_s", "ceiling_gb_per_s", "fraction_of_ceiling", "peak_rss_bytes",
    "next_token_p10_ms", "next_token_p90_ms", "next_token_p99_ms", "prefill_gflop_per_s", "gemm_ceiling_gflop_per_s",
    "prefill_fraction_of_gemm", "num_prompt_tokens", "batch_size", "num_rounds",
}  # fmt: skip


def report(job, step_ms, **fields):
    cases = [CaseReport(first_token_ms=50.0, step_ms=[step_ms] * 3, elapsed_s=1.0, token_ids=[1]) for _ in job.cases]
    return BenchReport(num_threads=1, peak_rss_bytes=1 << 20, cases=cases, **fields)


@pytest.fixture
def measured(monkeypatch):
    """Engines that answer at once: ours gets slower by round, theirs takes three times as long."""
    order = []

    def ours(dtype, num_ranks):
        def run(job):
            order.append(f"ours {job.dtype}")
            return report(job, 10.0 * order.count(f"ours {job.dtype}"), weight_bytes_per_token=200_000_000, cpus=[0])

        return session.Contender(engine="corebound", dtype=dtype, num_ranks=num_ranks, run=run)

    def theirs(peer, folder, job):
        order.append(f"theirs {job.dtype}")
        return report(job, 30.0 * order.count(f"theirs {job.dtype}"))

    monkeypatch.setattr(session, "our_ranks", ours)
    monkeypatch.setattr(process, "measure", theirs)
    monkeypatch.setattr(
        Ruler, "read", lambda self: Reading(read_gb_per_s=20.0, best_read_gb_per_s=21.0, gemm_gflop_per_s=1000.0)
    )
    return order


def test_a_row_has_every_key_and_medians_over_the_rounds(measured, capsys):
    assert main(["bench", "generate", "--model", "demo", "--rounds", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = result["rows"]
    assert len(rows) == 1 and rows[0].keys() >= KEYS
    assert (rows[0]["engine"], rows[0]["num_ranks"], rows[0]["next_token_ms"]) == ("corebound", 2, 20.0)
    assert (rows[0]["next_token_p10_ms"], rows[0]["next_token_p99_ms"]) == (10.0, 30.0)
    # The cache that a step reads comes on top of the weights.
    num_bytes = 200_000_000 + rows[0]["cache_bytes_per_step"]
    assert rows[0]["cache_bytes_per_step"] > 0
    assert rows[0]["read_gb_per_s"] == pytest.approx(num_bytes / 20e-3 / 1e9, abs=1e-3)
    assert rows[0]["fraction_of_ceiling"] == pytest.approx(rows[0]["read_gb_per_s"] / 20, abs=1e-3)
    assert rows[0]["prefill_fraction_of_gemm"] == pytest.approx(rows[0]["prefill_gflop_per_s"] / 1000, abs=1e-3)
    assert "other_share" in result["load"]


def test_rounds_of_both_engines_alternate_and_are_compared_pair_by_pair(measured, capsys):
    command = ["bench", "generate", "--model", "demo", "--rounds", "3", "--compare", "transformers"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert measured == ["ours bfloat16", "theirs bfloat16"] * 3
    assert result["comparison"] == {
        "with": "transformers",
        "dtype": "bfloat16",
        "num_ranks": 2,
        "num_prompt_tokens": 32,
        "batch_size": 1,
        "decode_speed_ratio": 3.0,
        "ratio_per_round": [3.0, 3.0, 3.0],
        "first_token_ratio": 1.0,
        "first_token_ratio_per_round": [1.0, 1.0, 1.0],
        "round_counts": [True, True, True],
        "lines_ns_per_round": [[], [], []],
        "num_equal_tokens": 1,
        "num_new_tokens": 48,
    }
    assert main(command) == 0
    assert "decode is 3.00 times as fast as transformers" in capsys.readouterr().out


def test_every_dtype_length_and_batch_has_a_row(measured, capsys):
    command = ["bench", "generate", "--model", "demo", "--rounds", "1", "--json", "--dtype", "bfloat16,float32"]
    assert main([*command, "--prompt-tokens", "8,32", "--batch", "1,4"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["dtype"], row["num_prompt_tokens"], row["batch_size"]) for row in rows] == [
        (dtype, length, batch) for dtype in ("bfloat16", "float32") for length in (8, 32) for batch in (1, 4)
    ]
    assert rows[1]["decode_tokens_per_s"] == 4 * rows[0]["decode_tokens_per_s"]
    assert measured == ["ours bfloat16", "ours float32"]


def test_another_engine_that_fails_is_named_and_ours_goes_on(measured, monkeypatch, capsys):
    def fail(peer, folder, job):
        raise process.PeerError("convert ended with exit code 1: no disk")

    monkeypatch.setattr(process, "measure", fail)
    command = ["bench", "generate", "--model", "demo", "--rounds", "2", "--compare", "transformers"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["num_rounds"] for row in result["rows"]] == [2]
    assert result["failures"] == [
        {"engine": "transformers", "dtype": "bfloat16", "reason": "convert ended with exit code 1: no disk"}
    ]
    assert result["comparisons"] == []


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "give either --model or --shape"),
        (["--model", "demo", "--shape", "llama-1.1b"], 2, "give either --model or --shape"),
        (["--shape", "lama-1.1b"], 2, "`llama-1.1b`"),
        (["--model", "demo", "--compare", "transformer"], 2, "`transformers`"),
        (["--model", "demo", "--dtype", "int4:g5"], 2, "unknown part 'g5'"),
        (["--model", "/no/such/model"], 6, "/no/such/model"),
        (["--model", "demo", "--rounds", "0"], 2, "--rounds"),
        (["--model", "demo", "--batch", "1,none"], 2, "such as 1,4,16"),
        (["--model", "demo", "--prompt-tokens", "0"], 2, "such as 1,4,16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_flag_is_one_clear_error(measured, capsys, flags, code, message):
    assert main(["bench", "generate", *flags]) == code
    assert message in capsys.readouterr().err
    assert measured == []


def test_a_round_without_a_report_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(session, "launch", lambda spec: 0)
    monkeypatch.setattr(
        Ruler, "read", lambda self: Reading(read_gb_per_s=20.0, best_read_gb_per_s=21.0, gemm_gflop_per_s=1.0)
    )
    assert main(["bench", "generate", "--model", "demo"]) != 0
    assert "ended without a report" in capsys.readouterr().err


def test_a_job_reaches_the_other_process_unchanged():
    from corebound.engine.bench.cases import make_cases

    job = BenchJob(
        model_dir="m",
        dtype="bfloat16",
        cases=make_cases([4], [1, 2], 3, 100),
        num_warm_up_tokens=4,
        report_path="r",
    )
    assert BenchJob.from_json(json.loads(job.to_bytes())) == job
