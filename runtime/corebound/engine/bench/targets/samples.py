"""The rounds of ranks that keep their models: who does which turns, and what every case came to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from corebound.engine.bench.ruler import Reading, Ruler
from corebound.engine.bench.series import Sample
from corebound.engine.bench.targets.pairs import Pair, alternate, told
from corebound.engine.bench.targets.planned import PlannedPair, PlannedTurn, Who
from corebound.engine.bench.targets.resident import ResidentRanks
from corebound.engine.bench.targets.turn_files import TurnCase, TurnReport
from corebound.kernels.latency_probe import are_alike

# Turns during which the processors were moved are done again, up to so many times; not turns that last longer than a
# hypervisor leaves the processors where they are, as that of a very long prompt.
_MAX_TRIES = 4
_MAX_REPEATED_S = 20.0
# A loop that never rests, as a process that shares a core may be.
_BUSY = "while True: pass"


@dataclass(kw_only=True)
class Samples:
    """The samples of every case in the order of rounds, the pairs of every round, first turns, and all readings.

    `num_repeated` turns were done again because the readings around them told of two placements of the processors, or
    of another than is usual in this round; `num_moved` are kept though they tell it of their last try as well.
    """

    of_case: dict[tuple[Who, str], list[Sample]] = field(default_factory=dict)
    of_pair: dict[str, list[list[Pair]]] = field(default_factory=dict)
    first: dict[Who, TurnReport] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    num_repeated: int = 0
    num_moved: int = 0

    def find(self, who: Who, case: str) -> list[Sample]:
        """Return the samples of one case of some ranks; none where it was not measured."""
        return self.of_case.get((who, case), [])


def steady(found: Sequence[Sample]) -> Sequence[Sample]:
    """Return the rounds during which the processors were not moved, where there are any."""
    return [sample for sample in found if sample.is_steady] or found


def moved_note(found: Sequence[Sample]) -> str:
    """Return what is to be said of rounds none of which was steady; nothing where one was."""
    return "" if any(sample.is_steady for sample in found) else "in no round did the processors lie still"


def run_rounds(
    model_dir: Path,
    turns: Sequence[PlannedTurn | PlannedPair],
    first_cases: Sequence[TurnCase],
    *,
    ruler: Ruler,
    num_rounds: int,
    kv_cache_gib: float,
    announce: Callable[[str], None],
    each_round: Callable[[], object] = lambda: None,
) -> Samples:
    """Return the samples of rounds in which everyone takes turns; models are loaded once, before the first.

    The first turn of ranks has `first_cases`, whose memory counts. `each_round` is called
    at the start of every round.
    """
    samples = Samples()
    with contextlib.ExitStack() as stack:
        ranks: dict[Who, ResidentRanks] = {}
        for who in dict.fromkeys(who for turn in turns for who in turn.everyone):
            announce(f"{model_dir.name}: loading {who}")
            one = ResidentRanks(model_dir, who.dtype, who.num_ranks, kv_cache_gib=kv_cache_gib, cpus=who.cpus or None)
            ranks[who] = stack.enter_context(one)
            samples.first[who] = one.turn(first_cases)
        is_read = any(isinstance(turn, PlannedTurn) for turn in turns)
        for number in range(num_rounds):
            each_round()
            usual_ns = ruler.usual_line_ns() if is_read else 0.0
            if is_read:
                samples.readings.append(ruler.read())
            for turn in turns:
                if isinstance(turn, PlannedPair):
                    done = alternate(turn, ranks, ruler)
                    samples.of_pair.setdefault(turn.name, []).append(done)
                    text = told(turn, done)
                else:
                    _do(turn, ranks[turn.who], samples, ruler, usual_ns)
                    last = samples.find(turn.who, turn.cases[-1].name)[-1]
                    text = f"{turn.who}: {turn.cases[-1].name} {last.step_ms:.2f} ms"
                announce(f"round {number + 1} of {num_rounds}: {text}")
    return samples


def _do(turn: PlannedTurn, ranks: ResidentRanks, samples: Samples, ruler: Ruler, usual_ns: float) -> None:
    cpus = samples.first[turn.who].report.cpus
    assert cpus, "our ranks report them"
    for number in range(_MAX_TRIES if turn.is_read else 1):
        samples.num_repeated += number > 0
        started_s = time.monotonic()
        with busy(cpus[-1] if turn.is_busy else None):
            found = ranks.turn(turn.cases)
        lasted_s = time.monotonic() - started_s
        before = samples.readings[-1]
        if turn.is_read:
            samples.readings.append(ruler.read())
        after = samples.readings[-1]
        lay_still = before.is_alike(after) and are_alike(usual_ns, after.line_ns)
        if lay_still or lasted_s > _MAX_REPEATED_S:
            break
    samples.num_moved += turn.is_read and not lay_still
    for case, report in zip(turn.cases, found.report.cases, strict=True):
        of_case = samples.of_case.setdefault((turn.who, case.name), [])
        of_case.append(Sample(engine=found.report, case=report, before=before, after=after, number=len(of_case)))


@contextlib.contextmanager
def busy(cpu: int | None) -> Iterator[None]:
    """Enter with another process that never rests on a CPU; with none without a CPU."""
    if cpu is None:
        yield
        return
    process = subprocess.Popen([sys.executable, "-S", "-c", _BUSY])
    try:
        os.sched_setaffinity(process.pid, {cpu})
        yield
    finally:
        process.kill()
        process.wait()
