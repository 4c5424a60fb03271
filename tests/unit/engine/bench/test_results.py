"""Files of results: what can be written is known before anything is measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corebound.cli.main import main
from corebound.engine.bench import results
from corebound.errors import ConfigError


def test_a_file_that_can_be_written_stays_as_it_is(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("before")
    results.require_writable(kept)
    results.require_writable(tmp_path / "new" / "made.json")
    assert kept.read_text() == "before"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept.json", "new"]


@pytest.mark.parametrize(
    "words",
    [
        ("targets", "--results", "{file}/x.json"),
        ("peers", "--results", "{file}/x.json"),
        ("peers", "--output", "{file}/x.md"),
        ("peers", "--output", "/proc/x.md"),
    ],
)
def test_a_file_that_cannot_be_written_is_an_error_before_anything_is_measured(
    words: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    cache = tmp_path / "shapes"
    assert main(["bench", *(word.format(file=file) for word in words), "--cache-dir", str(cache)]) == 2
    assert f"{words[2].format(file=file)}: cannot be written" in capfd.readouterr().err
    assert not cache.exists()


def test_a_folder_that_goes_away_meanwhile_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=f"{file}{os.sep}x.json: cannot be written"):
        results.write(file / "x.json", {})
