"""The matrix in docs/models.md: complete, true in each cell, and what its generator writes."""

import dataclasses

import pytest

import models_matrix
from corebound.sharding.modules.families import TABLES
from fixtures.families import FAMILIES
from fixtures.module_parity import quiet_transformers
from models_matrix import BEGIN, DTYPES, END, MODES, RANKS
from models_pages import PAGE, replaced


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def test_the_page_lists_every_table(page):
    before = page.partition(BEGIN)[0]
    assert [name for name in TABLES if f"`{name}`" not in before] == []


def test_the_matrix_on_the_page_has_every_cell_and_none_that_differs(page):
    matrix = page.partition(BEGIN)[2].partition(END)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in matrix.splitlines() if line.startswith("|")
    ]
    expected = {(family, dtype, mode) for family in FAMILIES for dtype in DTYPES for mode in MODES}
    assert {tuple(row[:3]) for row in rows[2:]} == expected
    assert all(len(row) == 3 + len(RANKS) and all(row) for row in rows)
    assert "differs" not in matrix
    said = {(row[0], row[2]): row[3].removeprefix("no: ") for row in rows[2:] if row[3].startswith("no: ")}
    found = {
        (name, mode): models_matrix.lacks(FAMILIES[name]) for name in FAMILIES for mode in MODES if "inject" in mode
    }
    assert said == {of: lack for of, lack in found.items() if lack}


def test_a_row_that_is_run_now_holds():
    with quiet_transformers():
        row = models_matrix.cells("bloom", "bfloat16", "module")
    assert [cell.num_ranks for cell in row] == list(RANKS)
    assert all(cell.holds and cell.error > 0 for cell in row)


def test_other_tokens_or_a_larger_error_are_a_cell_that_differs():
    cell = models_matrix.Cell("bloom", 2, "float32", "module", True, 1e-6, 0.0)
    assert str(cell) == "same, 1e-06"
    assert "differs" in str(dataclasses.replace(cell, same_tokens=False))
    assert "differs" in str(dataclasses.replace(cell, error=1e-3))
    half = dataclasses.replace(cell, dtype="bfloat16", error=9e-3, whole_error=8e-3, same_tokens=False)
    assert str(half) == "9e-03"
    assert "differs" in str(dataclasses.replace(half, error=3e-2))


def test_a_family_that_a_mode_cannot_run_says_why_and_is_not_run():
    row = models_matrix.cells("gemma2", "float32", "inject")
    assert [str(cell) for cell in row] == ["no: soft-capped attention scores", "-", "-", "-"]
    assert all(cell.holds for cell in row)


def test_the_text_between_the_markers_is_replaced_and_nothing_else():
    page = f"one\n{BEGIN}old\n{END}two\n"
    assert replaced(page, "new\n", BEGIN, END) == f"one\n{BEGIN}\nnew\n\n{END}two\n"
