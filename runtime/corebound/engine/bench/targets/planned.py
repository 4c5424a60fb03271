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
    """Cases that some ranks do in every round. Without `is_read` no reading of the machine follows."""

    who: Who
    cases: Sequence[TurnCase]
    is_read: bool = True

    @property
    def everyone(self) -> tuple[Who, ...]:
        """The ranks that do it."""
        return (self.who,)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of two that are compared; if `is_busy`, while another process never rests on the last CPU of its ranks."""

    who: Who
    case: TurnCase
    is_busy: bool = False


@dataclass(frozen=True, kw_only=True)
class PlannedPair:
    """Two sides that are held against each other and take turns, `num_times` times in every round.

    They need no reading of the machine between them. So both are over long before a hypervisor moves the processors
    once more, which lie the same for one and the other.
    """

    one: Side
    other: Side
    num_times: int

    @property
    def everyone(self) -> tuple[Who, ...]:
        """The ranks that do it."""
        return (self.one.who, self.other.who)
