"""Two sides that take turns so shortly after each other that the processors mostly lie the same for both."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from corebound.engine.bench.peers.adapters.protocol import CaseReport
from corebound.engine.bench.ruler import Ruler
from corebound.engine.bench.targets.planned import PlannedPair, Side, Who
from corebound.engine.bench.targets.resident import ResidentRanks
from corebound.kernels.latency_probe import are_alike

# A round has so many tries for each pair that it wants, and begins none of those beyond the wanted after so long.
_MAX_TRIES = 2
_MAX_REPEATED_S = 30.0
# Fewer of a round's pairs are chance.
_LEAST_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What one turn of either side came to; `lines_ns` is how long a cache line took before, between and after them."""

    one: CaseReport
    other: CaseReport
    lines_ns: tuple[float, float, float]

    @property
    def lay_still(self) -> bool:
        """Whether the processors lay the same for both sides."""
        return are_alike(min(self.lines_ns), max(self.lines_ns))


def alternate(pair: PlannedPair, ranks: Mapping[Who, ResidentRanks], ruler: Ruler) -> list[Pair]:
    """Return all pairs of one round, those that did not lie still too. Either side goes first in every other one.

    Raises: LaunchError when ranks have ended, or take longer than a turn may; KernelError when no latency can be had.
    """
    done: list[Pair] = []
    started_s = time.monotonic()
    line_ns = ruler.line_ns()
    while sum(made.lay_still for made in done) < pair.num_times:
        is_late = time.monotonic() - started_s > _MAX_REPEATED_S
        if len(done) >= (pair.num_times if is_late else _MAX_TRIES * pair.num_times):
            break
        sides = (pair.one, pair.other) if len(done) % 2 == 0 else (pair.other, pair.one)
        before_ns, first = line_ns, _do(sides[0], ranks, is_cold=not done)
        between_ns, second = ruler.line_ns(), _do(sides[1], ranks, is_cold=not done)
        line_ns = ruler.line_ns()
        one, other = (first, second) if sides[0] is pair.one else (second, first)
        done.append(Pair(one=one, other=other, lines_ns=(before_ns, between_ns, line_ns)))
    return done


def _do(side: Side, ranks: Mapping[Who, ResidentRanks], *, is_cold: bool) -> CaseReport:
    (case,) = ranks[side.who].turn([side.case], warm_up=is_cold).report.cases
    return case


def rounds_that_count(rounds: Sequence[Sequence[Pair]]) -> tuple[list[list[Pair]], str]:
    """Return the pairs that lay still of the rounds that have enough of them, and what is to be said of them.

    Where no round has enough, those of all rounds count; where none lay still, all do. Either is said.
    """
    still = [[made for made in of_round if made.lay_still] for of_round in rounds]
    enough = [kept for kept, tried in zip(still, rounds, strict=True) if len(kept) >= _LEAST_SHARE * len(tried)]
    if enough:
        return enough, ""
    if found := [kept for kept in still if kept]:
        return found, "in no round did the processors lie still for a quarter of the pairs"
    return [list(of_round) for of_round in rounds], "in no pair did the processors lie still"


def told(pair: PlannedPair, done: Sequence[Pair]) -> str:
    """Return the round of a pair as one line."""
    of_one, of_other = ([getattr(made, side) for made in done] for side in ("one", "other"))
    still = sum(made.lay_still for made in done)
    return f"{_told(pair.one, of_one)}; {_told(pair.other, of_other)}; {still} of {len(done)} pairs lay still"


def _told(side: Side, reports: Sequence[CaseReport]) -> str:
    first_ms = statistics.median(report.first_token_ms for report in reports)
    step_ms = statistics.median(itertools.chain.from_iterable(report.step_ms for report in reports))
    return f"{side.who}: {side.case.name}: first token {first_ms:.2f} ms, next {step_ms:.2f} ms"
