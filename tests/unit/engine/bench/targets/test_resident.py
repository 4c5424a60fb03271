"""Ranks that keep a model, with another process in their place: what is left of failures, and who hangs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from corebound.engine.bench.targets import resident
from corebound.engine.bench.targets.resident import ResidentRanks
from corebound.engine.bench.targets.turn_files import write_whole
from corebound.errors import LaunchError

SLEEPS = (sys.executable, "-S", "-c", "import time; time.sleep(600)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def ranks(turn_within_s: float = 60.0) -> ResidentRanks:
    return ResidentRanks(Path("model"), "int8", 2, kv_cache_gib=1.0, turn_within_s=turn_within_s)


def test_a_launcher_that_cannot_start_leaves_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_LAUNCH", (str(folder / "missing"),))
    with pytest.raises(FileNotFoundError):
        ranks()
    assert list(folder.iterdir()) == []


def test_a_turn_that_never_ends_is_an_error_that_says_what_each_rank_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_LAUNCH", SLEEPS)
    started_s = time.monotonic()
    with ranks(turn_within_s=0.3) as kept:
        write_whole(kept._job.state_path(0), "turn 0, decode")
        with pytest.raises(LaunchError) as failed:
            kept.turn([])
    assert "no report of turn 0 within 0.3 s" in str(failed.value)
    assert "rank 0: turn 0, decode; rank 1: not started" in str(failed.value)
    assert time.monotonic() - started_s < 50  # it was not waited for as one that was asked to end
    assert isinstance(kept._process, subprocess.Popen) and kept._process.poll() is not None
    assert list(folder.iterdir()) == []


def test_a_launcher_that_ended_is_an_error_with_its_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_LAUNCH", (sys.executable, "-S", "-c", "raise SystemExit(3)"))
    with ranks() as kept, pytest.raises(LaunchError, match="exit code 3"):
        kept.turn([])
    assert list(folder.iterdir()) == []
