"""Engines take turns, and whoever comes after ours measures where the processors lie as they did for ours."""

from __future__ import annotations

import pytest

from corebound.engine.bench.cases import make_cases
from corebound.engine.bench.peers.adapters.protocol import BenchJob, BenchReport, CaseReport
from corebound.engine.bench.ruler import Reading, Ruler
from corebound.engine.bench.session import OURS, Contender, take_turns
from corebound.engine.bench.work import Work
from corebound.native import core_library_path
from corebound.topology import read_topology
from fixtures.topology_trees import shared_machine

WORK = Work(layer_elements=9, head_elements=1, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)
STILL, MOVED, UNKNOWN = [50.0, 55.0], [50.0, 210.0], []


@pytest.fixture(autouse=True)
def steady_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(read_gb_per_s=20.0, best_read_gb_per_s=21.0, gemm_gflop_per_s=1000.0, line_ns=50.0)
    monkeypatch.setattr(Ruler, "read", lambda self: reading)


def jobs_of(*turns: tuple[str, str, list[list[float]]], cpus: tuple[int, ...] = (0, 1)) -> list[BenchJob]:
    """Return the jobs of one round of engines, each with its dtype and the lines that it reports of its two cases."""
    received: list[BenchJob] = []

    def contender(engine: str, dtype: str, lines: list[list[float]]) -> Contender:
        def run(job: BenchJob) -> BenchReport:
            received.append(job)
            cases = [CaseReport(first_token_ms=1.0, step_ms=[1.0], elapsed_s=1.0, lines_ns=of) for of in lines]
            return BenchReport(num_threads=1, peak_rss_bytes=1, cases=cases)

        return Contender(engine=engine, dtype=dtype, num_ranks=1, run=run)

    job = BenchJob(
        model_dir="m",
        dtype="bfloat16",
        cases=make_cases([4, 8], [1], 2, 100),
        num_warm_up_tokens=1,
        report_path="r",
    )
    take_turns(
        [contender(*turn) for turn in turns],
        job,
        model="m",
        work=WORK,
        ruler=Ruler(topology=read_topology(str(shared_machine("vm"))), cpus=cpus),
        num_rounds=1,
        announce=lambda text: None,
    )
    return received


def wanted(job: BenchJob) -> list[list[float]]:
    return [case.wanted_lines_ns for case in job.cases]


def test_others_want_the_processors_as_they_lay_for_ours_where_they_lay_still() -> None:
    ours, other = jobs_of((OURS, "int8", [STILL, MOVED]), ("x", "int8", [STILL, STILL]))
    assert (wanted(ours), wanted(other)) == ([[], []], [STILL, []])


def test_each_dtype_wants_what_was_measured_of_it() -> None:
    found = jobs_of(
        (OURS, "int8", [STILL, STILL]),
        (OURS, "int4", [UNKNOWN, [27.0, 27.0]]),
        ("x", "int4", [STILL, STILL]),
        ("x", "int8", [STILL, STILL]),
    )
    assert [wanted(job) for job in found[2:]] == [[[], [27.0, 27.0]], [STILL, STILL]]


def test_the_second_of_ours_wants_what_the_first_had_and_fills_what_that_had_not() -> None:
    later = [210.0, 205.0]
    _, second, other = jobs_of((OURS, "int8", [STILL, MOVED]), (OURS, "int8", [later, later]), ("x", "int8", [[], []]))
    assert (wanted(second), wanted(other)) == ([STILL, []], [STILL, later])


def test_a_job_says_where_lines_are_timed_and_how_often() -> None:
    (job,) = jobs_of((OURS, "int8", [STILL, STILL]), cpus=(0, 2, 3))
    assert (job.line_library, job.line_cpus) == (str(core_library_path()), [0, 3])
    assert job.max_tries > 1 and 1 < job.line_tolerance < 1.7
    (job,) = jobs_of((OURS, "int8", [STILL, STILL]), cpus=(0,))
    assert job.line_library is None
