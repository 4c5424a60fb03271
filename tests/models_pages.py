"""Fills the tables of docs/models.md that `make models-matrix` and `make models-memory` generate."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from fixtures.families import FAMILIES

PAGE = Path(__file__).parents[1] / "docs" / "models.md"


class Cell(Protocol):
    """One cell of a generated table; its text is what the table says."""

    @property
    def holds(self) -> bool:
        """Whether it is what it has to be."""


C = TypeVar("C", bound=Cell)


def wanted_families(name: str, description: str | None) -> list[str]:
    """Return the families that the command line names: none of them means all."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}")
    wanted: list[str] = parser.parse_args().families
    if unknown := sorted(set(wanted) - set(FAMILIES)):
        parser.error(f"no such family: {', '.join(unknown)}")
    return wanted


def finish(
    rows: list[list[C]],
    wanted: list[str],
    table: Callable[[list[list[C]]], str],
    markers: tuple[str, str],
    name: Callable[[C], str],
) -> int:
    """Print the rows of the families that were named, else write the page; return 1 if a cell does not hold.

    Every cell that does not is said on standard error, as `name` gives it.
    """
    if wanted:
        print(table(rows), end="")
    else:
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), table(rows), *markers), encoding="utf-8")
    failed = [cell for row in rows for cell in row if not cell.holds]
    for cell in failed:
        print(f"error: {name(cell)}", file=sys.stderr)
    return 1 if failed else 0


def replaced(page: str, text: str, begin: str, end: str) -> str:
    """Return the page with the text between the markers."""
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"error: {PAGE}: expected the lines {begin.strip()} and {end.strip()}")
    return f"{before}{begin}\n{text}\n{end}{after}"
