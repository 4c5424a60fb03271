"""corebound bench generate without measuring: how reports become rows, and what is refused."""

import json

import pytest

from corebound.cli import bench_generate as module
from corebound.cli.main import main
from corebound.engine.bench.job import BenchJob, BenchReport
from corebound.kernels.memory_probe import ReadBandwidth

KEYS = {
    "model", "dtype", "num_ranks", "num_threads", "first_token_ms", "next_token_ms", "tokens_per_s",
    "weight_bytes_per_token", "read_gb_per_s", "ceiling_gb_per_s", "fraction_of_ceiling", "peak_rss_bytes",
}  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    """Engines that answer at once: ours gets slower by round, theirs takes three times as long."""
    order = []

    def report(job, next_ms, **fields):
        BenchReport(
            num_threads=fields.pop("num_threads", 1),
            first_token_ms=50.0,
            next_token_ms=next_ms,
            tokens_per_s=1e3 / next_ms,
            peak_rss_bytes=1 << 20,
            **fields,
        ).write(job.report_path)

    def ours(job, num_ranks):
        order.append("ours")
        report(job, 10.0 * order.count("ours"), weight_bytes_per_token=200_000_000, cpus=[0])

    def theirs(job):
        order.append("theirs")
        report(job, 30.0 * order.count("theirs"), num_threads=job.num_threads)

    monkeypatch.setattr(module, "_run_ours", ours)
    monkeypatch.setattr(module, "_run_peer", theirs)
    monkeypatch.setattr(
        module,
        "measure_read",
        lambda cpus, **_: ReadBandwidth(cpus=(0,), bytes_per_thread=1, median_gb_per_s=20.0, best_gb_per_s=21.0),
    )
    return order


def test_a_row_has_every_key_and_medians_over_the_rounds(measured, capsys):
    assert main(["bench", "generate", "--model", "demo", "--rounds", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 1 and rows[0].keys() >= KEYS
    assert (rows[0]["engine"], rows[0]["num_ranks"], rows[0]["next_token_ms"]) == ("corebound", 2, 20.0)
    assert rows[0]["read_gb_per_s"] == 10.0
    assert rows[0]["fraction_of_ceiling"] == 0.5


def test_rounds_of_both_engines_alternate_and_are_compared_pair_by_pair(measured, capsys):
    command = ["bench", "generate", "--model", "demo", "--rounds", "3", "--compare", "transformers"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert measured == ["ours", "theirs"] * 3
    assert result["comparison"] == {
        "with": "transformers",
        "decode_speed_ratio": 3.0,
        "ratio_per_round": [3.0, 3.0, 3.0],
    }
    assert main(command) == 0
    assert "decode is 3.00 times as fast as transformers" in capsys.readouterr().out


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
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_flag_is_one_clear_error(measured, capsys, flags, code, message):
    assert main(["bench", "generate", *flags]) == code
    assert message in capsys.readouterr().err
    assert measured == []


def test_a_round_without_a_report_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(module, "_run_ours", lambda job, num_ranks: None)
    assert main(["bench", "generate", "--model", "demo"]) != 0
    assert "ended without a report" in capsys.readouterr().err


def test_a_job_reaches_the_other_process_unchanged():
    job = BenchJob(
        model_dir="m",
        dtype="bfloat16",
        prompt_token_ids=[1, 2],
        num_new_tokens=3,
        num_warm_up_tokens=4,
        report_path="r",
    )
    assert BenchJob(**json.loads(job.to_bytes())) == job
