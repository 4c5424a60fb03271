"""Times of a batch become a report: nothing counts in which only a part of the prompts was continued."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from corebound.engine.bench.cases import make_cases
from corebound.engine.bench.peers.adapters import protocol
from corebound.engine.bench.peers.adapters.protocol import (
    BenchJob,
    BenchReport,
    CaseReport,
    between_lines,
    case_report,
    read_report,
)
from corebound.engine.bench.peers.catalog import ADAPTERS
from corebound.native import core_library_path
from corebound.topology import read_topology


def test_one_prompt_has_all_its_steps() -> None:
    found = case_report([[0.5, 0.6, 0.8]], elapsed_s=0.8, token_ids=(4, 5, 6))
    assert found.first_token_ms == pytest.approx(500)
    assert found.step_ms == pytest.approx([100, 200])
    assert found.token_ids == [4, 5, 6]


def test_steps_count_while_all_prompts_are_continued() -> None:
    early, late = [0.1, 0.5, 0.6, 0.7], [0.5, 0.6, 0.7, 0.9]
    found = case_report([early, late], elapsed_s=0.9, token_ids=())
    assert found.first_token_ms == pytest.approx(500)
    assert found.step_ms == pytest.approx([100, 100])


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = BenchReport(
        num_threads=2,
        peak_rss_bytes=3,
        cases=[CaseReport(first_token_ms=1.5, step_ms=[1.0, 2.0], elapsed_s=0.1, token_ids=[7])],
        version="1.2",
    )
    path = tmp_path / "report.json"
    report.write(str(path))
    assert read_report(path) == report


def test_prompts_of_a_batch_differ_and_stay_within_the_vocabulary() -> None:
    cases = make_cases([5, 300], [1, 3], 8, 100)
    assert [(case.num_prompt_tokens, case.batch_size) for case in cases] == [(5, 1), (5, 3), (300, 1), (300, 3)]
    prompts = cases[3].prompt_token_ids
    assert len({tuple(prompt) for prompt in prompts}) == 3
    assert all(3 <= token < 100 for prompt in prompts for token in prompt)


def test_the_prompts_of_a_warm_up_begin_otherwise() -> None:
    (case,) = make_cases([5], [2], 8, 100)
    warm_up = case.for_warm_up()
    assert (warm_up.num_prompt_tokens, warm_up.batch_size) == (5, 2)
    assert all(a[0] != b[0] for a, b in zip(case.prompt_token_ids, warm_up.prompt_token_ids, strict=True))


(CASE,) = make_cases([5], [1], 8, 100)
JOB = BenchJob(
    model_dir="m",
    dtype="bfloat16",
    cases=[CASE],
    num_warm_up_tokens=1,
    report_path="r",
    line_library="library",
    line_cpus=[0, 1],
    line_tolerance=1.25,
    max_tries=3,
)


def tries(
    monkeypatch: pytest.MonkeyPatch, lines: list[float], job: BenchJob = JOB, wanted: tuple[float, ...] = ()
) -> CaseReport:
    """Return the report of a case, whose steps take as long as it was tried, between lines that take as long."""
    remaining = iter(lines)
    monkeypatch.setattr(protocol, "_line_ns", lambda library, cpus: next(remaining))
    done: list[str] = []

    def measure(what: str) -> CaseReport:
        done.append(what)
        return CaseReport(first_token_ms=1.0, step_ms=[float(len(done))], elapsed_s=1.0)

    case = dataclasses.replace(CASE, wanted_lines_ns=list(wanted))
    return between_lines(job, case, measure, "what is measured")


def test_a_case_is_measured_again_until_the_processors_lie_still(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tries(monkeypatch, [50, 210, 210, 27, 50, 55])
    assert (found.step_ms, found.lines_ns) == ([3.0], [50, 55])
    found = tries(monkeypatch, [50, 55])
    assert (found.step_ms, found.lines_ns) == ([1.0], [50, 55])


def test_a_case_is_measured_again_until_they_lie_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tries(monkeypatch, [210, 210, 50, 50], wanted=(45, 55))
    assert (found.step_ms, found.lines_ns) == ([2.0], [50, 50])
    found = tries(monkeypatch, [70, 72, 50, 50], wanted=(50, 60))  # like the last, and not like the first
    assert found.lines_ns == [50, 50]


def test_the_last_try_counts_whatever_the_processors_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tries(monkeypatch, [50, 210] * 3)
    assert (found.step_ms, found.lines_ns) == ([3.0], [50, 210])
    monkeypatch.setattr(protocol, "_MAX_REPEATED_S", 0.0)
    assert tries(monkeypatch, [50, 210]).step_ms == [1.0]


@pytest.mark.parametrize("fields", [{"line_library": None}, {"num_ranks": 2}])
def test_a_job_without_a_library_or_of_several_processes_has_one_try_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    found = tries(monkeypatch, [], dataclasses.replace(JOB, **fields))
    assert (found.step_ms, found.lines_ns) == ([1.0], [])


@pytest.mark.native
def test_lines_are_timed_where_corebound_is_not_installed() -> None:
    cpus = [core.cpus[0] for core in read_topology().physical_cores()][:2]
    if len(cpus) < 2:
        pytest.skip("this machine lacks a second core")
    code = (
        "import json, protocol, sys\n"
        "job = protocol.read_job()\n"
        "measure = lambda: protocol.CaseReport(first_token_ms=1.0, step_ms=[], elapsed_s=1.0)\n"
        "found = protocol.between_lines(job, job.cases[0], measure)\n"
        "assert 'corebound' not in sys.modules\n"
        "print(json.dumps(found.lines_ns))\n"
    )
    job = dataclasses.replace(JOB, line_library=str(core_library_path()), line_cpus=cpus, max_tries=1)
    # -I leaves out what is installed for the user, -S what is installed at all.
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ADAPTERS)!r})\n{code}"]
    out = subprocess.run(command, input=job.to_bytes(), capture_output=True, check=True).stdout
    before_ns, after_ns = json.loads(out)
    assert 1 < before_ns < 1e8 and 1 < after_ns < 1e8
