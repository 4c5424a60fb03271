"""What the generators of docs/models.md share: who is wanted, what is written or printed, and what is an error."""

import sys
from dataclasses import dataclass

import pytest

import models_pages
from models_pages import finish, replaced, wanted_families

MARKERS = ("<!-- begin -->\n", "<!-- end -->\n")


@dataclass(frozen=True)
class Cell:
    text: str
    holds: bool = True


def table(rows):
    return "".join(f"{cell.text}\n" for row in rows for cell in row)


def end(rows, wanted):
    return finish(rows, wanted, table, MARKERS, lambda cell: cell.text)


def test_a_family_that_is_not_there_is_an_error_that_names_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["models_matrix", "bloom", "blume"])
    with pytest.raises(SystemExit):
        wanted_families("models_matrix", None)
    assert "models_matrix: error: no such family: blume" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["models_matrix", "bloom"])
    assert wanted_families("models_matrix", None) == ["bloom"]


def test_families_that_were_named_are_printed_and_the_page_is_left_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(models_pages, "PAGE", tmp_path / "page.md")
    assert end([[Cell("good")]], ["bloom"]) == 0
    assert capsys.readouterr().out == "good\n"
    assert not models_pages.PAGE.exists()


def test_all_families_are_written_and_a_cell_that_does_not_hold_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(models_pages, "PAGE", tmp_path / "page.md")
    models_pages.PAGE.write_text("one\n{}old\n{}two\n".format(*MARKERS))
    assert end([[Cell("good"), Cell("bad", holds=False)]], []) == 1
    assert models_pages.PAGE.read_text() == "one\n{}\ngood\nbad\n\n{}two\n".format(*MARKERS)
    assert capsys.readouterr().err == "error: bad\n"


def test_a_page_without_the_markers_is_not_written():
    with pytest.raises(SystemExit, match=r"models\.md: expected the lines <!-- begin --> and <!-- end -->"):
        replaced("nothing\n", "new\n", *MARKERS)
