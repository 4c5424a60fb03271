"""The table of peak memory in docs/models.md: complete, within the bound everywhere, and what its generator writes."""

import dataclasses
import re

from fixtures.families import FAMILIES
from fixtures.large_models import MIB
from models_memory import BEGIN, CONSTANT_BYTES, END, LOADERS, RANKS, Cell, lacks
from models_pages import PAGE, replaced
from multiproc.memory_tasks import Grown

CELL = Cell("llama", "decoder", 1, (Grown(50 * MIB, 40 * MIB),))


def table_of_the_page() -> tuple[str, list[list[str]]]:
    text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    return text, [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]


def test_the_page_says_no_where_the_code_does_and_nowhere_else() -> None:
    said = {
        (row[0], row[1]): row[2].removeprefix("no: ") for row in table_of_the_page()[1] if row[2].startswith("no: ")
    }
    found = {(family, loader): lacks(family, loader) for family in FAMILIES for loader in LOADERS}
    assert said == {of: lack for of, lack in found.items() if lack}


def test_the_table_on_the_page_has_every_cell_and_none_that_needs_more() -> None:
    text, rows = table_of_the_page()
    assert {tuple(row[:2]) for row in rows[2:]} == {(family, loader) for family in FAMILIES for loader in LOADERS}
    assert all(len(row) == 2 + len(RANKS) for row in rows)
    assert "more" not in text
    for row in rows[2:]:
        if row[2].startswith("no: "):
            assert set(row[3:]) == {"-"}
            continue
        found = [re.fullmatch(r"(\d+\.\d) ([+-]\d+\.\d)", cell) for cell in row[2:]]
        assert all(found), row
        assert all(float(one[1]) > 2 * CONSTANT_BYTES / MIB * 0.9 for one in found if one), row
        if not LOADERS[row[1]].joins_block:
            assert all(float(one[2]) <= CONSTANT_BYTES / MIB for one in found if one), row


def test_a_rank_that_needs_more_is_a_cell_that_says_so() -> None:
    assert str(CELL) == "40.0 +10.0"
    more = dataclasses.replace(CELL, ranks=(*CELL.ranks, Grown(57 * MIB, 40 * MIB, 8 * MIB)))
    assert str(more) == "**more** 40.0 +17.0"
    assert not more.holds
    # Blocks of ours are joined from the module's, one at a time.
    assert dataclasses.replace(more, loader="init_inference, inject").holds


def test_the_table_is_put_between_markers_of_its_own() -> None:
    assert replaced(f"one\n{BEGIN}old\n{END}two\n", "new\n", BEGIN, END) == f"one\n{BEGIN}\nnew\n\n{END}two\n"
