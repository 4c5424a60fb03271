"""Who does what in every round, by the lines that were asked for."""

from __future__ import annotations

from collections.abc import Collection

from corebound.engine.bench.targets.judge import DTYPES, ONE_RANK
from corebound.engine.bench.targets.samples import PlannedTurn, Who
from corebound.engine.bench.targets.settings import Settings
from corebound.topology import Topology

# What a shape after the first is measured for.
_LINES_OF_OTHERS = ("decode", "memory", "plan")


def main_turns(
    lines: Collection[str], settings: Settings, vocab_size: int, num_cores: int, *, is_first: bool
) -> list[PlannedTurn]:
    """Return the turns of a round on one shape.

    What one and two ranks are compared by is a turn of its own, two right after one: the shorter a turn, the likelier
    it is that a hypervisor leaves the processors where they are from the reading before it to the one after it.
    """
    asked = [line for line in lines if is_first or line in _LINES_OF_OTHERS]
    turns = []
    for dtype in DTYPES:
        everyone = [Who(dtype=dtype, num_ranks=num_ranks) for num_ranks in ((1, 2) if num_cores > 1 else (1,))]
        wanted = (
            (settings.decode, [who for who in everyone if _wants_decode(asked, who, is_first=is_first)]),
            (settings.short_prompt, [who for who in everyone if _compares_ranks(asked, who.dtype)]),
            (settings.prompt, [who for who in everyone if _wants_prompt(asked, who)]),
        )
        turns += [PlannedTurn(who=who, cases=[case(vocab_size)]) for case, found in wanted for who in found]
    if "context" in asked:
        turns.append(PlannedTurn(who=ONE_RANK, cases=[settings.long_context(vocab_size)]))
    if "beams" in asked:
        turns.append(PlannedTurn(who=ONE_RANK, cases=settings.beams(vocab_size)))
    if "batches" in asked:
        turns.append(PlannedTurn(who=ONE_RANK, cases=settings.batches(vocab_size), is_read=False))
    if "busy" in asked:
        free, taken = (settings.busy(vocab_size, is_taken=is_taken) for is_taken in (False, True))
        turns.append(PlannedTurn(who=ONE_RANK, cases=[free]))
        turns.append(PlannedTurn(who=ONE_RANK, cases=[taken], is_busy=True))
    return turns


def _compares_ranks(asked: Collection[str], dtype: str) -> bool:
    return "ranks" in asked and dtype == "bfloat16"


def _wants_decode(asked: Collection[str], who: Who, *, is_first: bool) -> bool:
    if who.num_ranks == 1 and "decode" in asked:
        # Of the larger vocabulary only bfloat16 is promised.
        return is_first or who.dtype == "bfloat16"
    return _compares_ranks(asked, who.dtype)


def _wants_prompt(asked: Collection[str], who: Who) -> bool:
    if "plan" in asked:
        return True
    if who.num_ranks == 1 and ("prefill" in asked or "memory" in asked):
        return True
    return _compares_ranks(asked, who.dtype)


def two_cpus(topology: Topology) -> tuple[int, int]:
    """Return a CPU of each of the two cores that a small model is measured on."""
    first, second = (core.cpus[0] for core in topology.physical_cores()[:2])
    return first, second


def cached_turns(settings: Settings, vocab_size: int, cpus: tuple[int, int]) -> list[PlannedTurn]:
    """Return the turns of one rank on the first of two CPUs, and of two ranks on one each."""
    cases = [settings.cached_decode(vocab_size)]
    return [
        PlannedTurn(who=Who(dtype="bfloat16", num_ranks=1, cpus=cpus[:1]), cases=cases),
        PlannedTurn(who=Who(dtype="bfloat16", num_ranks=2, cpus=cpus), cases=cases),
    ]
