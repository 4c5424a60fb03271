"""Two sides that take turns so shortly after each other that the processors lie the same for both."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from corebound.engine.bench.peers.adapters.protocol import BenchReport
from corebound.engine.bench.ruler import Ruler
from corebound.engine.bench.targets.planned import PlannedPair, Side, Who
from corebound.engine.bench.targets.resident import ResidentRanks
from corebound.engine.bench.targets.turn_files import together
from corebound.kernels.latency_probe import are_alike

# So many tries for each pair that is wanted.
_MAX_TRIES = 2
# A loop that never rests, as a process that shares a core may be.
_BUSY = "while True: pass"


@dataclass(frozen=True, kw_only=True)
class PairRound:
    """What both sides came to in a round, one case each, over the pairs that count; how many were done again.

    Pairs count around and between whose turns a cache line took as long as it mostly did in this round. Where none
    does, all are told, and `lay_still` is False.
    """

    one: BenchReport
    other: BenchReport
    num_repeated: int
    lay_still: bool


class _Try(NamedTuple):
    reports: tuple[BenchReport, BenchReport]
    lines_ns: tuple[float, float, float]


def alternate(
    pair: PlannedPair, ranks: Mapping[Who, ResidentRanks], last_cpus: Mapping[Who, int], ruler: Ruler
) -> PairRound:
    """Return one round of a pair; `last_cpus` are those that a busy process takes.

    Raises: LaunchError when ranks have ended, or take longer than a turn may.
    """

    def do(side: Side) -> BenchReport:
        with busy(last_cpus[side.who] if side.is_busy else None):
            return ranks[side.who].turn([side.case]).report

    tries: list[_Try] = []
    counting: list[_Try] = []
    line_ns = ruler.line_ns()
    while len(counting) < pair.num_times and len(tries) < _MAX_TRIES * pair.num_times:
        before_ns, one = line_ns, do(pair.one)
        between_ns, other = ruler.line_ns(), do(pair.other)
        line_ns = ruler.line_ns()
        tries.append(_Try(reports=(one, other), lines_ns=(before_ns, between_ns, line_ns)))
        usual_ns = statistics.median_low([line for made in tries for line in made.lines_ns])
        counting = [made for made in tries if all(are_alike(usual_ns, line) for line in made.lines_ns)]
    chosen = counting or tries
    lines_ns = [usual_ns] if counting else [line for made in tries for line in made.lines_ns]
    return PairRound(
        one=_summed_up([made.reports[0] for made in chosen], lines_ns),
        other=_summed_up([made.reports[1] for made in chosen], lines_ns),
        num_repeated=max(0, len(tries) - pair.num_times),
        lay_still=bool(counting),
    )


def _summed_up(reports: Sequence[BenchReport], lines_ns: list[float]) -> BenchReport:
    case = together([case for report in reports for case in report.cases])
    return dataclasses.replace(reports[-1], cases=[dataclasses.replace(case, lines_ns=lines_ns)])


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
