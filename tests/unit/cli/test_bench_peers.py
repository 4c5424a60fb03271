"""`corebound bench peers` without measuring: who takes part, what is said of the others, and the report."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from corebound.cli import bench_peers as module
from corebound.cli import bench_peers_sums
from corebound.cli.main import main
from corebound.engine.bench import session
from corebound.engine.bench.peers import process
from corebound.engine.bench.peers.adapters.protocol import BenchReport, CaseReport
from corebound.engine.bench.peers.catalog import PEERS
from corebound.engine.bench.ruler import Reading, Ruler


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Two engines that look installed; the others are missing."""
    folder = tmp_path / "peers"
    for name in ("llama_cpp", "vllm"):
        (folder / name).mkdir(parents=True)
        (folder / name / ".setup").write_text("done")
    return folder


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Engines and sums that answer at once; vLLM fails from the second round on."""
    turns: list[str] = []

    def report(job, step_ms):
        cases = [CaseReport(first_token_ms=50.0, step_ms=[step_ms] * 3, elapsed_s=1.0) for _ in job.cases]
        return BenchReport(num_threads=1, peak_rss_bytes=1 << 30, cases=cases, version="1.0")

    def ours(dtype, num_ranks):
        def run(job):
            turns.append(f"corebound {num_ranks} {job.dtype}")
            return report(job, 10.0)

        return session.Contender(engine="corebound", dtype=dtype, num_ranks=num_ranks, run=run)

    def theirs(peer, folder, job):
        turns.append(f"{peer.environment or 'transformers'} {job.num_ranks} {job.dtype}")
        if peer.environment == "vllm" and job.num_ranks == 1 and sum(turn.startswith("vllm 1") for turn in turns) > 1:
            raise process.PeerError("measure ended with exit code 1: no more | memory")
        return report(job, 20.0)

    figures = {f"p{p}_us": 1.5 for p in (10, 50, 90, 99)}
    monkeypatch.setattr(session, "our_ranks", ours)
    monkeypatch.setattr(process, "measure", theirs)
    monkeypatch.setattr(process, "convert", lambda peer, folder, job: job)
    monkeypatch.setattr(
        Ruler, "read", lambda self: Reading(read_gb_per_s=20.0, best_read_gb_per_s=21.0, gemm_gflop_per_s=1000.0)
    )
    monkeypatch.setattr(bench_peers_sums, "_pairs", lambda: {"near": tuple(os.sched_getaffinity(0))})
    monkeypatch.setattr(
        bench_peers_sums, "_ours", lambda: [{"provider": "floor", "entry": "plain", "bytes": 8192, **figures}]
    )
    monkeypatch.setattr(bench_peers_sums, "_theirs", lambda name, folder: {8192: figures})
    # Whether this machine has it must not matter here.
    monkeypatch.setitem(module.PEERS, "ipex", dataclasses.replace(PEERS["ipex"], places=()))
    return turns


def run(*words: str, folder: Path, cache: Path) -> dict:
    command = ["--shape", "llama-tiny", "--peers-dir", str(folder), "--cache-dir", str(cache), "--json"]
    done = CliRunner().invoke(module.peers, [*command, *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_ours_and_the_others_take_turns_and_who_is_missing_is_said(
    installed: Path, order: list[str], tmp_path: Path
) -> None:
    words = ("--peers", "llama_cpp,openvino,ipex", "--dtype", "bfloat16", "--rounds", "2", "--batch", "1")
    result = run(*words, folder=installed, cache=tmp_path)
    turn = ["corebound 1 bfloat16", "corebound 2 bfloat16", "llama_cpp 1 bfloat16"]
    assert order == turn * 2
    reasons = {failure["engine"]: failure["reason"] for failure in result["failures"]}
    assert reasons["openvino"] == "not installed in peers/openvino: `make bench-peers PEERS=openvino`"
    assert reasons["ipex"].startswith("not installed: it is bound to torch 2.8")
    assert [(row["engine"], row["num_ranks"], row["num_prompt_tokens"]) for row in result["rows"]] == [
        ("corebound", 1, 32),
        ("corebound", 1, 512),
        ("corebound", 2, 32),
        ("corebound", 2, 512),
        ("llama_cpp", 1, 32),
        ("llama_cpp", 1, 512),
    ]
    assert {item["decode_speed_ratio"] for item in result["comparisons"]} == {2.0}
    assert len(result["readings"]) == 7


def test_an_engine_without_weights_of_a_dtype_is_said_and_so_are_ours(
    installed: Path, order: list[str], tmp_path: Path
) -> None:
    words = ("--peers", "llama_cpp,vllm", "--dtype", "int4", "--rounds", "1", "--no-all-reduce")
    result = run(*words, folder=installed, cache=tmp_path)
    assert result["command"].endswith("--rounds 1 --no-all-reduce")
    reasons = {failure["engine"]: failure["reason"] for failure in result["failures"]}
    assert reasons["vllm"] == "runs bfloat16 only"
    assert "llama_cpp" not in reasons
    assert "all_reduce" not in result


def test_an_engine_that_fails_leaves_with_its_reason_and_keeps_its_rounds(
    installed: Path, order: list[str], tmp_path: Path
) -> None:
    words = ("--peers", "vllm,vllm_tp", "--ranks", "1", "--rounds", "3", "--batch", "1", "--prompt-tokens", "8")
    result = run(*words, folder=installed, cache=tmp_path)
    assert [row["num_rounds"] for row in result["rows"]] == [3, 1, 3]
    (failure,) = [one for one in result["failures"] if one["engine"] == "vllm"]
    assert "no more | memory" in failure["reason"]
    assert [row["provider"] for row in result["all_reduce"]] == ["floor", "vllm_tp"]


def test_a_report_holds_tables_plots_reasons_and_the_command_but_no_places(
    installed: Path, order: list[str], tmp_path: Path
) -> None:
    output, results = tmp_path / "docs" / "benchmarks.md", tmp_path / "out" / "peers.json"
    output.parent.mkdir()
    words = ("--peers", "vllm,openvino", "--rounds", "2", "--output", str(output), "--results", str(results))
    run(*words, folder=installed, cache=tmp_path / "cache")
    text = output.read_text()
    assert "corebound bench peers --shape llama-tiny --dtype bfloat16 --peers vllm,openvino" in text
    for words in (
        "### Decode, batch 1",
        "### First token, prompt of 512",
        "### Batches",
        "### All-reduce",
        "### Not measured",
        "### One and two ranks",
        "no more / memory",
        "| vLLM-CPU 1.0 | bf16 | 1 x 1 |",
    ):
        assert words in text
    assert str(tmp_path) not in text
    plots = sorted(path.name for path in (output.parent / "benchmarks").iterdir())
    assert plots == ["llama-tiny-batch.svg", "llama-tiny-decode.svg", "llama-tiny-prefill.svg"]
    assert all(f"](benchmarks/{name})" in text for name in plots)
    again = tmp_path / "docs" / "again.md"
    assert main(["bench", "peers", "--from-results", str(results), "--output", str(again)]) == 0
    assert again.read_text() == text.replace("](benchmarks/", "](again/")


def test_sums_can_be_timed_alone(installed: Path, order: list[str], tmp_path: Path) -> None:
    results = tmp_path / "sums.json"
    words = ("--peers", "vllm", "--only-all-reduce", "--rounds", "2", "--results", str(results))
    result = run(*words, folder=installed, cache=tmp_path / "none")
    assert order == [] and not (tmp_path / "none").exists()
    assert result["rows"] == [] and result["num_rounds"] == 2
    assert [row["provider"] for row in result["all_reduce"]] == ["floor", "vllm_tp"]
    assert result["command"] == "corebound bench peers --peers vllm --only-all-reduce --rounds 2"
    again = CliRunner().invoke(module.peers, ["--from-results", str(results)])
    assert again.exit_code == 0
    assert "8 KiB" in again.stdout and "vllm_tp" in again.stdout


def test_what_was_found_is_kept_after_each_round(installed: Path, order, tmp_path: Path, monkeypatch) -> None:
    results = tmp_path / "peers.json"
    kept: list[int] = []
    take_turn = process.measure

    def measure(peer, folder, job):
        kept.append(json.loads(results.read_text())["num_rounds"] if results.exists() else 0)
        return take_turn(peer, folder, job)

    monkeypatch.setattr(process, "measure", measure)
    words = ("--peers", "llama_cpp", "--rounds", "3", "--results", str(results), "--no-all-reduce")
    assert run(*words, folder=installed, cache=tmp_path)["num_rounds"] == 3
    assert kept == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--peers", "lama_cpp"], "`llama_cpp`"),
        (["--dtype", "bf16"], "bfloat16"),
        (["--shape", "lama"], "llama"),
        (["--only-all-reduce", "--no-all-reduce"], "nothing to measure"),
        (["--only-all-reduce", "--peers", "llama_cpp"], "those that have: deepspeed, deepspeed_tp, vllm, vllm_tp"),
    ],
)
def test_a_wrong_word_is_one_clear_error(installed, order, tmp_path, capsys, words, message) -> None:
    command = ["bench", "peers", "--peers-dir", str(installed), "--cache-dir", str(tmp_path), "--shape", "llama-tiny"]
    assert main([*command, *words]) == 2
    assert message in capsys.readouterr().err
    assert order == []


def test_other_results_are_refused_with_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"rows": []}))
    assert main(["bench", "peers", "--from-results", str(path)]) == 2
    assert f"{path}: expected results of `corebound bench peers`" in capsys.readouterr().err


def test_every_engine_names_an_adapter_that_is_there_or_says_why_not() -> None:
    from corebound.engine.bench.peers.catalog import ADAPTERS

    for name, peer in PEERS.items():
        assert (ADAPTERS / peer.adapter).is_file(), name
        assert peer.sum_adapter is None or (ADAPTERS / peer.sum_adapter).is_file(), name
        assert dataclasses.replace(peer, environment="none", places=()).python(Path("/nowhere")) is None


def test_an_engine_that_something_else_installed_is_found(tmp_path: Path) -> None:
    peer = dataclasses.replace(PEERS["ipex"], places=(str(tmp_path / "a"), str(tmp_path / "b")))
    assert peer.python(tmp_path) is None
    (tmp_path / "b" / "bin").mkdir(parents=True)
    (tmp_path / "b" / "bin" / "python").touch()
    assert peer.python(tmp_path) == tmp_path / "b" / "bin" / "python"


def test_sigterm_ends_the_engine_whose_turn_it_is(tmp_path: Path):
    said, engine = tmp_path / "pid", tmp_path / "engine.py"
    engine.write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(said) + '.new'!r}).write_text(str(os.getpid()))\n"
        f"os.rename({str(said) + '.new'!r}, {str(said)!r})\n"
        "time.sleep(300)\n"
    )
    script = (
        "import sys; from pathlib import Path; from types import SimpleNamespace as S; "
        "from corebound.cli import bench_peers; from corebound.cli.main import main; "
        "from corebound.engine.bench.peers import process; "
        f"peer = S(python=lambda _: Path(sys.executable), adapter={str(engine)!r}, variables={{}}); "
        "job = S(num_threads=None, to_bytes=lambda: b'', action='measure'); "
        "bench_peers.measure = lambda *_, **__: process._run(peer, Path(), job); "
        "sys.exit(main(['bench', 'peers', '--peers', 'vllm']))"
    )
    command = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    end = time.monotonic() + 60
    while not said.exists() and time.monotonic() < end:
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    assert command.wait(60) == 128 + signal.SIGTERM
    assert not Path("/proc", said.read_text()).exists()
