"""What a round consists of: turns with a reading of the machine after each, and pairs that are compared only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from corebound.engine.bench.targets.turn_files import TurnCase


@dataclass(frozen=True, kw_only=True, order=True)
class Who:
    """Ranks with one dtype; without `cpus` they share all allowed cores."""

    dtype: str
    num_ranks: int
    cpus: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = f" on CPU {self.cpus[0]}" if len(self.cpus) == 1 else ""
        return f"{self.dtype}, {self.num_ranks} rank{'s' * (self.num_ranks > 1)}{where}"


@dataclass(frozen=True, kw_only=True)
class PlannedTurn:
    """Cases that some ranks do in every round; if `is_busy`, while another process never rests on their last CPU.

    Without `is_read` no reading of the machine follows.
    """

    who: Who
    cases: Sequence[TurnCase]
    is_read: bool = True
    is_busy: bool = False

    @property
    def everyone(self) -> tuple[Who, ...]:
        """The ranks that do it."""
        return (self.who,)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of two that are held against each other."""

    who: Who
    case: TurnCase


@dataclass(frozen=True, kw_only=True)
class PlannedPair:
    """Two sides that are held against each other, and not against the machine: no reading of it comes between them.

    They take turns `num_times` times in every round, so shortly after each other that a hypervisor mostly leaves the
    processors where they are from one to the other. What a side does must not linger: the other comes right after.
    """

    name: str
    one: Side
    other: Side
    num_times: int

    @property
    def everyone(self) -> tuple[Who, ...]:
        """The ranks that do it."""
        return (self.one.who, self.other.who)
