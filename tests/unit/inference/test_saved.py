"""Writing the ranks' weights when something is in the way: every rank hears of it, and no manifest vouches for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corebound.errors import HostError
from corebound.inference.saved import MANIFEST, save_ranks
from fixtures.families import FAMILIES
from fixtures.thread_group import run_ranks


def save(directory: Path) -> list[str]:
    """What each of two ranks is told of writing a model."""
    models = [FAMILIES["llama"].build() for _ in range(2)]

    def work(collectives: Any) -> str:
        try:
            save_ranks(directory, models[collectives.rank], {}, {}, collectives)
        except HostError as error:
            return error.message
        return ""

    return run_ranks(2, work)


@pytest.mark.parametrize(
    ("in_the_way", "said"),
    [
        (".model-rank-01-of-02.safetensors.partial", "rank 1: .*model-rank-01-of-02.safetensors: cannot be written: "),
        (f".{MANIFEST}.partial", f"{MANIFEST}: cannot be written: Is a directory"),
        (f"{MANIFEST}", f"{MANIFEST}: cannot be removed: Is a directory"),
    ],
)
def test_what_one_rank_cannot_write_is_an_error_on_all(in_the_way: str, said: str, tmp_path: Path) -> None:
    (tmp_path / in_the_way / "something").mkdir(parents=True)
    first, second = save(tmp_path)
    assert first == second
    with pytest.raises(HostError, match=said):
        raise HostError(first)


def test_an_old_manifest_does_not_stay_beside_files_that_were_not_all_written(tmp_path: Path) -> None:
    assert save(tmp_path) == ["", ""]
    assert (tmp_path / MANIFEST).is_file() and not list(tmp_path.glob(".*"))
    (tmp_path / ".model-rank-01-of-02.safetensors.partial").mkdir()
    assert "model-rank-01-of-02" in save(tmp_path)[0]
    assert not (tmp_path / MANIFEST).exists()
