"""An engine's process: its job on standard input, its report in a file, and what is said when it fails."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from corebound.engine.bench.cases import make_cases
from corebound.engine.bench.peers import process
from corebound.engine.bench.peers.adapters.protocol import BenchJob
from corebound.engine.bench.peers.catalog import Peer

PROTOCOL = Path(process.__file__).parent / "adapters" / "protocol.py"


def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, **fields) -> Peer:
    """An engine whose adapter is `body`, run by this Python."""
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "protocol.py").write_text(PROTOCOL.read_text())
    (adapters / "run.py").write_text(body)
    monkeypatch.setattr(process, "ADAPTERS", adapters)
    return Peer(title="x", adapter="run.py", formats={"bfloat16": "bf16"}, environment=None, **fields)


def job(tmp_path: Path) -> BenchJob:
    return BenchJob(
        model_dir=str(tmp_path / "model"),
        dtype="bfloat16",
        cases=make_cases([4], [1], 3, 100),
        num_warm_up_tokens=2,
        report_path=str(tmp_path / "report.json"),
        num_threads=2,
    )


REPORTS = """
import os
from protocol import *
job = read_job()
BenchReport(
    num_threads=int(os.environ["OMP_NUM_THREADS"]),
    peak_rss_bytes=1,
    cases=[
        CaseReport(first_token_ms=1.0, step_ms=[2.0], elapsed_s=0.1, token_ids=[case.num_new_tokens])
        for case in job.cases
    ],
    version=os.environ["COLOUR"],
).write(job.report_path)
"""


def test_a_job_comes_back_as_a_report_with_the_variables_of_the_engine(tmp_path, monkeypatch) -> None:
    peer = engine(tmp_path, monkeypatch, REPORTS, variables={"COLOUR": "green"})
    found = process.measure(peer, tmp_path, job(tmp_path))
    assert (found.num_threads, found.version, found.cases[0].token_ids) == (2, "green", [3])


def test_the_last_words_of_an_engine_that_fails_are_its_reason(tmp_path, monkeypatch) -> None:
    peer = engine(tmp_path, monkeypatch, "import sys\nprint('first', file=sys.stderr)\nsys.exit('no such kernel')")
    with pytest.raises(process.PeerError, match=r"measure ended with exit code 1: first \| no such kernel"):
        process.measure(peer, tmp_path, job(tmp_path))


def test_an_old_report_is_not_taken_for_a_new_one(tmp_path, monkeypatch) -> None:
    peer = engine(tmp_path, monkeypatch, "pass")
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(process.PeerError, match="ended without a report"):
        process.measure(peer, tmp_path, job(tmp_path))


def test_a_process_that_an_engine_leaves_behind_ends_with_it(tmp_path, monkeypatch) -> None:
    body = REPORTS + (
        "import subprocess\nchild = subprocess.Popen(['sleep', '600'], stderr=subprocess.DEVNULL)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
    )
    peer = engine(tmp_path, monkeypatch, body, variables={"COLOUR": "x"})
    process.measure(peer, tmp_path, job(tmp_path))
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child still runs")


def test_an_engine_that_hangs_is_ended_and_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(process, "TIMEOUT_S", 1.0)
    peer = engine(tmp_path, monkeypatch, "import time\ntime.sleep(600)")
    with pytest.raises(process.PeerError, match="did not end within 1 s"):
        process.measure(peer, tmp_path, job(tmp_path))


def test_a_model_is_converted_once_and_again_after_a_failure(tmp_path, monkeypatch) -> None:
    body = (
        "from protocol import *\nimport pathlib, sys\njob = read_job()\n"
        f"log = pathlib.Path({str(tmp_path / 'log')!r})\nlog.open('a').write(job.action + ' ')\n"
        f"sys.exit(0 if pathlib.Path({str(tmp_path / 'works')!r}).exists() else 'no room')\n"
    )
    peer = engine(tmp_path, monkeypatch, body, converts=True)
    with pytest.raises(process.PeerError, match="convert ended with exit code 1: no room"):
        process.convert(peer, tmp_path, job(tmp_path))
    (tmp_path / "works").touch()
    for _ in range(2):
        found = process.convert(peer, tmp_path, job(tmp_path))
        assert found.converted_dir is not None and Path(found.converted_dir).is_dir()
    assert (tmp_path / "log").read_text().split() == ["convert", "convert"]


def test_a_missing_engine_says_how_to_install_it(tmp_path: Path) -> None:
    peer = Peer(title="x", adapter="run.py", formats={}, environment="vllm")
    with pytest.raises(process.PeerError, match="make bench-peers PEERS=vllm"):
        process.measure(peer, tmp_path, job(tmp_path))
    assert sys.executable == str(Peer(title="x", adapter="", formats={}, environment=None).python(tmp_path))
