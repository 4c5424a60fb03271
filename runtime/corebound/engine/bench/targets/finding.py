"""One promised figure and what the rounds found of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from corebound.engine.bench.series import percentile

Sense = Literal["at least", "at most", "within"]
ONE_CORE = "this machine has one core"
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A quantity of every round, with its unit: what was timed, or the limit that it is held against."""

    name: str
    unit: str
    rounds: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        """Return name, unit, median, p10 and p90."""
        return {"name": self.name, "unit": self.unit, **spread(self.rounds)}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A promise, and the ratio of every round that it is judged by.

    With `sense` "within" the median ratio has to lie within `bound` of 1. A figure without a `bound` is told, and
    promises nothing. `measured` over `limit` is the ratio, or the other way round; `pairs_per_round` are the pairs of
    turns that count, where rounds are made of such; `note` says how rounds were made where that is not plain.
    """

    line: str
    what: str
    sense: Sense
    bound: float | None
    ratios: Sequence[float]
    measured: Measured | None = None
    limit: Measured | None = None
    pairs_per_round: Sequence[int] = ()
    note: str = ""

    @property
    def promised(self) -> str:
        """Return the promise in words."""
        return promise(self.sense, self.bound)

    @property
    def is_met(self) -> bool | None:
        """Return whether the median of the rounds keeps the promise; None where nothing is promised."""
        if self.bound is None:
            return None
        found = statistics.median(self.ratios)
        if self.sense == "within":
            return abs(found - 1) <= self.bound
        return found >= self.bound if self.sense == "at least" else found <= self.bound

    def row(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {
            "line": self.line,
            "what": self.what,
            "promised": self.promised,
            "sense": self.sense,
            "bound": self.bound,
            "found": spread(self.ratios),
            "num_rounds": len(self.ratios),
            "pairs_per_round": list(self.pairs_per_round),
            "rounds": [round(ratio, _DIGITS) for ratio in self.ratios],
            "measured": None if self.measured is None else self.measured.to_json(),
            "limit": None if self.limit is None else self.limit.to_json(),
            "is_met": self.is_met,
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True)
class NotMeasured:
    """A promise that this machine or run could say nothing about, and why."""

    line: str
    what: str
    reason: str
    promised: str = field(default="")

    def row(self) -> dict[str, Any]:
        """Return it as JSON values, under the keys of a finding."""
        return {
            "line": self.line,
            "what": self.what,
            "promised": self.promised,
            "found": None,
            "num_rounds": 0,
            "is_met": None,
            "note": self.reason,
        }


def promise(sense: Sense, bound: float | None) -> str:
    """Return a promise in words; none without a bound."""
    if bound is None:
        return ""
    return f"within {bound:.0%}" if sense == "within" else f"{sense} {bound:g}"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, p10 and p90 of the rounds."""
    return {
        "median": round(statistics.median(values), _DIGITS),
        "p10": round(percentile(values, 10), _DIGITS),
        "p90": round(percentile(values, 90), _DIGITS),
    }


def ratios_of(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return value over other, round by round."""
    return [value / other for value, other in zip(values, others, strict=True)]
