"""The part of a report that holds our promises: promised, found, met."""

from __future__ import annotations

from typing import Any

from corebound.engine.bench.targets.settings import LINES

HEADER = ("what", "promised", "found", "p10", "p90", "measured", "limit", "met")


def cells_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row under `HEADER`."""
    if row["found"] is None:
        return (row["what"], row["promised"], "not measured", "", "", "", "", "")
    found = row["found"]
    met = {True: "yes", False: "no", None: ""}[row["is_met"]]
    spread = tuple(f"{found[name]:.2f}" for name in ("median", "p10", "p90"))
    return (row["what"], row["promised"], *spread, _quantity(row["measured"]), _quantity(row["limit"]), met)


def _quantity(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return ""
    value = measured["median"]
    digits = 2 if abs(value) < 100 else 0
    return f"{measured['name']} {value:.{digits}f} {measured['unit']}".rstrip()


def count_met(rows: list[dict[str, Any]]) -> str:
    """Return how many promises are kept, in words."""
    promised = [row for row in rows if row["promised"] and row["is_met"] is not None]
    missing = [row for row in rows if row["found"] is None]
    text = f"{sum(row['is_met'] for row in promised)} of {len(promised)} promises are kept"
    return f"{text}; {len(missing)} could not be measured here." if missing else f"{text}."


def rows_by_line(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every line, in the order of the lines."""
    return {line: found for line in LINES if (found := [row for row in rows if row["line"] == line])}
