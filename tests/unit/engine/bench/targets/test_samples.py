"""Turns and readings: what is done again when a hypervisor moves the processors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
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

    def turn(self, cases: Sequence[TurnCase]) -> TurnReport:
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


def test_a_pair_is_one_sample_of_either_side_that_is_of_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    other = TurnCase(name="other", case=CASE.case)
    pair = PlannedPair(one=Side(who=ONE, case=CASE), other=Side(who=ONE, case=other), num_times=2)
    # The first is the reading of the round. The processors are moved in the second of three pairs.
    found = rounds(monkeypatch, FakeRuler(50, 50, 52, 51, 27, 50, 49, 50), pair)
    ((one,), (two,)) = found.find(ONE, "c"), found.find(ONE, "other")
    assert (one.case.step_ms, two.case.step_ms) == ([1.0, 5.0], [2.0, 6.0])
    assert one.is_alike(two) and one.case.lines_ns == [50]
    assert (len(found.readings), found.num_repeated, found.num_moved) == (1, 2, 0)


def test_a_pair_that_never_lay_still_is_told_and_is_not_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = PlannedPair(one=Side(who=ONE, case=CASE), other=Side(who=ONE, case=CASE), num_times=1)
    found = rounds(monkeypatch, FakeRuler(50, 50, 27, 50, 27, 195), pair)
    one, other = found.find(ONE, "c")
    assert (one.case.step_ms, other.case.step_ms) == ([1.0, 3.0], [2.0, 4.0])
    assert not one.is_alike(other)
    assert (found.num_repeated, found.num_moved) == (2, 2)


def test_another_process_takes_the_last_cpu_of_the_busy_side_only(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    @contextlib.contextmanager
    def busy(cpu: int | None) -> Iterator[None]:
        taken.append(cpu)
        yield

    monkeypatch.setattr(pairs, "busy", busy)
    pair = PlannedPair(one=Side(who=ONE, case=CASE, is_busy=True), other=Side(who=ONE, case=CASE), num_times=2)
    rounds(monkeypatch, FakeRuler(*[50] * 6), pair)
    assert taken == [1, None] * 2


def test_a_busy_process_is_where_it_should_be_and_leaves_with_the_turn() -> None:
    cpu = max(os.sched_getaffinity(0))
    before = set(Path("/proc").glob("[0-9]*"))
    with pairs.busy(cpu):
        (mine,) = [
            path
            for path in set(Path("/proc").glob("[0-9]*")) - before
            if path.joinpath("cmdline").read_bytes().endswith(b"while True: pass\0")
        ]
        assert os.sched_getaffinity(int(mine.name)) == {cpu}
    assert not mine.exists()


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
