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
    """Return the turns of a round on one shape, two ranks right after one so that both see the same minute."""
    asked = [line for line in lines if is_first or line in _LINES_OF_OTHERS]
    turns = []
    for dtype in DTYPES:
        for num_ranks in (1, 2) if num_cores > 1 else (1,):
            cases = []
            if _wants_decode(asked, dtype, num_ranks, is_first=is_first):
                cases.append(settings.decode(vocab_size))
            if _compares_ranks(asked, dtype):
                cases.append(settings.short_prompt(vocab_size))
            if _wants_prompt(asked, dtype, num_ranks):
                cases.append(settings.prompt(vocab_size))
            if cases:
                turns.append(PlannedTurn(who=Who(dtype=dtype, num_ranks=num_ranks), cases=cases))
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


def _wants_decode(asked: Collection[str], dtype: str, num_ranks: int, *, is_first: bool) -> bool:
    if num_ranks == 1 and "decode" in asked:
        # Of the larger vocabulary only bfloat16 is promised.
        return is_first or dtype == "bfloat16"
    return _compares_ranks(asked, dtype)


def _wants_prompt(asked: Collection[str], dtype: str, num_ranks: int) -> bool:
    if "plan" in asked:
        return True
    if num_ranks == 1 and ("prefill" in asked or "memory" in asked):
        return True
    return _compares_ranks(asked, dtype)


def two_cpus(topology: Topology) -> tuple[int, int]:
    """Return a CPU of each of the two cores that a small model is measured on."""
    first, second = (core.cpus[0] for core in topology.physical_cores()[:2])
    return first, second


def cached_turns(settings: Settings, vocab_size: int, cpus: tuple[int, int]) -> list[PlannedTurn]:
    """Return the turns of one rank on the first of two CPUs, and of two ranks on one each."""
    cases = [settings.decode(vocab_size)]
    return [
        PlannedTurn(who=Who(dtype="bfloat16", num_ranks=1, cpus=cpus[:1]), cases=cases),
        PlannedTurn(who=Who(dtype="bfloat16", num_ranks=2, cpus=cpus), cases=cases),
    ]
