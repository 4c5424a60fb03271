"""Who does what in every round, by the lines that were asked for."""

from __future__ import annotations

from collections.abc import Collection

from corebound.engine.bench.targets.judge import DTYPES, ONE_RANK, TWO_RANKS
from corebound.engine.bench.targets.planned import PlannedPair, PlannedTurn, Side, Who
from corebound.engine.bench.targets.settings import Settings
from corebound.topology import Topology

# What a shape after the first is measured for.
_LINES_OF_OTHERS = ("decode", "memory", "plan")
# Pairs of steps in the caches are short, so that more of them tell more.
_CACHED_TIMES = 3


def main_turns(
    lines: Collection[str], settings: Settings, vocab_size: int, num_cores: int, *, is_first: bool
) -> list[PlannedTurn | PlannedPair]:
    """Return the turns and pairs of a round on one shape."""
    asked = [line for line in lines if is_first or line in _LINES_OF_OTHERS]
    turns: list[PlannedTurn | PlannedPair] = []
    for dtype in DTYPES:
        everyone = [Who(dtype=dtype, num_ranks=num_ranks) for num_ranks in ((1, 2) if num_cores > 1 else (1,))]
        # Of the larger vocabulary only bfloat16 is promised.
        if "decode" in asked and (is_first or dtype == "bfloat16"):
            turns.append(PlannedTurn(who=everyone[0], cases=[settings.decode(vocab_size)]))
        turns += [
            PlannedTurn(who=who, cases=[settings.prompt(vocab_size)]) for who in everyone if _wants_prompt(asked, who)
        ]
    if "ranks" in asked and num_cores > 1:
        turns += [
            PlannedPair(
                name=name,
                one=Side(who=TWO_RANKS, case=case),
                other=Side(who=ONE_RANK, case=case),
                num_times=settings.num_pairs,
            )
            for name, case in settings.ranks(vocab_size).items()
        ]
    if "context" in asked:
        turns.append(PlannedTurn(who=ONE_RANK, cases=[settings.long_context(vocab_size)]))
    if "beams" in asked:
        batch, beams = (Side(who=ONE_RANK, case=case) for case in settings.beams(vocab_size))
        turns.append(PlannedPair(name="beams", one=beams, other=batch, num_times=settings.num_pairs))
    if "batches" in asked:
        turns.append(PlannedTurn(who=ONE_RANK, cases=settings.batches(vocab_size), is_read=False))
    if "busy" in asked:
        # No pair: who was held up on a core leaves it out for seconds after it is free again.
        free, taken = (settings.busy(vocab_size, is_taken=is_taken) for is_taken in (False, True))
        turns.append(PlannedTurn(who=ONE_RANK, cases=[free]))
        turns.append(PlannedTurn(who=ONE_RANK, cases=[taken], is_busy=True))
    return turns


def _wants_prompt(asked: Collection[str], who: Who) -> bool:
    return "plan" in asked or (who.num_ranks == 1 and ("prefill" in asked or "memory" in asked))


def two_cpus(topology: Topology) -> tuple[int, int]:
    """Return a CPU of each of the two cores that a small model is measured on."""
    first, second = (core.cpus[0] for core in topology.physical_cores()[:2])
    return first, second


def cached_pair(settings: Settings, vocab_size: int, cpus: tuple[int, int]) -> PlannedPair:
    """Return the pair of one rank on the first of two CPUs, and of two ranks on one each."""
    case = settings.cached_ranks(vocab_size)
    alone, both = (
        Side(who=Who(dtype="bfloat16", num_ranks=len(some), cpus=some), case=case) for some in (cpus[:1], cpus)
    )
    return PlannedPair(name="cached", one=alone, other=both, num_times=_CACHED_TIMES * settings.num_pairs)
