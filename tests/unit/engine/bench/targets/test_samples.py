"""Turns and readings: what is done again when a hypervisor moves the processors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from corebound.engine.bench import ruler
from corebound.engine.bench.peers.adapters.protocol import BenchCase, BenchReport, CaseReport
from corebound.engine.bench.ruler import Reading, Ruler
from corebound.engine.bench.targets import pairs
from corebound.engine.bench.targets import samples as module
from corebound.engine.bench.targets.planned import PlannedPair, PlannedTurn, Side, Who
from corebound.engine.bench.targets.samples import run_rounds
from corebound.engine.bench.targets.turn_files import TurnCase, TurnReport
from corebound.kernels.gemm_probe import GemmPeak
from corebound.kernels.memory_probe import ReadBandwidth
from corebound.topology import read_topology

ONE = Who(dtype="bfloat16", num_ranks=1)
CASE = TurnCase(name="c", case=BenchCase(prompt_token_ids=[[1]], num_new_tokens=2))


class FakeRanks:
    """Ranks whose turns are numbered: the first of them is the one that warms up."""

    def __init__(self, *_: object, **__: object) -> None:
        self.num_turns = 0

    def __enter__(self) -> FakeRanks:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def turn(self, cases: Sequence[TurnCase], *, warm_up: bool = True) -> TurnReport:
        case = CaseReport(first_token_ms=1.0, step_ms=[float(self.num_turns)], elapsed_s=1.0)
        self.num_turns += 1
        report = BenchReport(num_threads=1, peak_rss_bytes=1, cases=[case for _ in cases], cpus=[0, 1])
        return TurnReport(report=report, resident_bytes=1, before_load_bytes=1)


class FakeRuler:
    """Readings with these latencies, one after the other."""

    def __init__(self, *lines_ns: float) -> None:
        self._lines_ns = iter(lines_ns)

    def usual_line_ns(self) -> float:
        return 50.0

    def line_ns(self) -> float:
        return next(self._lines_ns)

    def read(self) -> Reading:
        line_ns = next(self._lines_ns)
        return Reading(read_gb_per_s=1.0, best_read_gb_per_s=1.0, gemm_gflop_per_s=1.0, line_ns=line_ns)


def rounds(monkeypatch: pytest.MonkeyPatch, fake: FakeRuler, turn: PlannedTurn | PlannedPair) -> Any:
    monkeypatch.setattr(module, "ResidentRanks", FakeRanks)
    return run_rounds(
        Path("model"),
        [turn],
        [CASE],
        ruler=cast(Any, fake),
        num_rounds=1,
        kv_cache_gib=1.0,
        announce=lambda _: None,
    )


@pytest.mark.parametrize(
    ("lines_ns", "kept", "repeated", "moved"),
    [
        ((50, 52), 1, 0, 0),
        ((50, 190, 195, 47, 50), 4, 3, 0),  # alike, but not as is usual
        ((50, 190, 52, 49), 3, 2, 0),
        ((50, 190, 27, 48, 195), 4, 3, 1),  # four tries, each with other readings around it
    ],
)
def test_a_turn_is_done_again_while_the_processors_are_moved(
    monkeypatch: pytest.MonkeyPatch, lines_ns: tuple[float, ...], kept: int, repeated: int, moved: int
) -> None:
    found = rounds(monkeypatch, FakeRuler(*lines_ns), PlannedTurn(who=ONE, cases=[CASE]))
    (sample,) = found.find(ONE, "c")
    assert (sample.step_ms, found.num_repeated, found.num_moved) == (kept, repeated, moved)
    assert (sample.before.line_ns, sample.after.line_ns) == lines_ns[-2:]


def test_a_turn_that_is_not_read_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for line_ns in (50, 200):
        found = rounds(monkeypatch, FakeRuler(line_ns), PlannedTurn(who=ONE, cases=[CASE], is_read=False))
        assert (len(found.readings), found.num_repeated, found.num_moved) == (1, 0, 0)


def test_a_turn_that_lasts_long_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_REPEATED_S", -1.0)
    found = rounds(monkeypatch, FakeRuler(50, 190), PlannedTurn(who=ONE, cases=[CASE]))
    assert (found.num_repeated, found.num_moved) == (0, 1)


OTHER = Who(dtype="bfloat16", num_ranks=2)


def paired(monkeypatch: pytest.MonkeyPatch, num_times: int, *lines_ns: float) -> tuple[Any, list[tuple[float, float]]]:
    pair = PlannedPair(name="p", one=Side(who=ONE, case=CASE), other=Side(who=OTHER, case=CASE), num_times=num_times)
    found = rounds(monkeypatch, FakeRuler(*lines_ns), pair)
    (of_round,) = found.of_pair["p"]
    return found, [(made.one.step_ms[0], made.other.step_ms[0]) for made in of_round]


def test_pairs_are_done_until_enough_lay_still_and_need_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    # The processors are moved in the second of three pairs.
    found, done = paired(monkeypatch, 2, 50, 52, 51, 27, 50, 49, 50)
    assert done == [(1, 1), (2, 2), (3, 3)]
    assert [made.lay_still for made in found.of_pair["p"][0]] == [True, False, True]
    assert found.of_pair["p"][0][1].lines_ns == (51, 27, 50)
    assert (found.readings, found.of_case, found.num_repeated) == ([], {}, 0)


def test_pairs_that_never_lie_still_are_done_twice_as_often_or_for_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    restless = (50, 50, 27, 50, 27, 195, 50, 27, 50)
    assert len(paired(monkeypatch, 2, *restless)[1]) == 4
    monkeypatch.setattr(pairs, "_MAX_REPEATED_S", -1.0)
    assert len(paired(monkeypatch, 2, *restless)[1]) == 2


def test_either_side_goes_first_in_every_other_pair_and_is_warmed_up_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, bool]] = []

    class Ranks(FakeRanks):
        def __init__(self, model_dir: Path, dtype: str, num_ranks: int, **_: object) -> None:
            super().__init__()
            self.num_ranks = num_ranks

        def turn(self, cases: Sequence[TurnCase], *, warm_up: bool = True) -> TurnReport:
            asked.append((self.num_ranks, warm_up))
            return super().turn(cases)

    monkeypatch.setattr(sys.modules[__name__], "FakeRanks", Ranks)
    _, done = paired(monkeypatch, 3, *[50] * 7)
    assert asked[2:] == [(1, True), (2, True), (2, False), (1, False), (1, False), (2, False)]
    assert done == [(1, 1), (2, 2), (3, 3)]


def test_a_busy_process_is_on_its_cpu_and_ends_with_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, words: list[str]) -> None:
            super().__init__(words)
            started.append(self)

    monkeypatch.setattr(module.subprocess, "Popen", Popen)
    cpu = max(os.sched_getaffinity(0))
    with module.busy(cpu):
        (process,) = started
        assert (os.sched_getaffinity(process.pid), process.poll()) == ({cpu}, None)
    assert process.returncode == -signal.SIGKILL


def test_a_reading_is_taken_again_while_the_processors_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    latencies, read_sizes = iter((50.0, 195.0, 200.0, 190.0)), []

    def read(cpus: Sequence[int], *, bytes_per_thread: int, **_: object) -> ReadBandwidth:
        read_sizes.append(bytes_per_thread)
        return ReadBandwidth(cpus=tuple(cpus), bytes_per_thread=1, median_gb_per_s=20.0, best_gb_per_s=21.0)

    def multiply(dtype: str, threads: int, **_: object) -> GemmPeak:
        return GemmPeak(
            dtype=dtype, num_threads=threads, size=1, median_gflop_per_s=300.0, best_gflop_per_s=300.0, layout="x"
        )

    monkeypatch.setattr(ruler, "measure_read", read)
    monkeypatch.setattr(ruler, "measure_gemm", multiply)
    monkeypatch.setattr(ruler, "distance_ns", lambda cpus: next(latencies))
    found = Ruler(topology=read_topology(), cpus=(0, 1)).read()
    assert (len(read_sizes), found.line_ns, found.read_gb_per_s, found.is_steady) == (2, 190.0, 20.0, True)


def test_a_reading_that_was_never_held_is_alike_to_none() -> None:
    steady, moved = (
        Reading(read_gb_per_s=1.0, best_read_gb_per_s=1.0, gemm_gflop_per_s=1.0, line_ns=50.0, is_steady=is_steady)
        for is_steady in (True, False)
    )
    assert steady.is_alike(steady)
    assert not steady.is_alike(moved) and not moved.is_alike(moved)
