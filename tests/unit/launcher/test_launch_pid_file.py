from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest

from corebound.launcher.launch import _pid_file
from corebound.launcher.spec import LaunchSpec

SPEC = LaunchSpec(command=("x",), save_pid=True)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the process id is to be written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"{os.getpid()}.corebound"


def test_the_process_id_is_there_while_the_launch_runs(path: Path) -> None:
    with _pid_file(SPEC, 42):
        assert path.read_text() == "42\n"
    assert not path.exists()


def test_a_link_that_somebody_left_is_not_followed(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    with _pid_file(SPEC, 42):
        assert not path.is_symlink() and path.read_text() == "42\n"
    assert victim.read_text() == "precious"


def test_a_link_that_somebody_makes_at_that_moment_is_not_followed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: self.symlink_to(victim))
    monkeypatch.setattr(logging.getLogger("corebound"), "propagate", True)
    with caplog.at_level(logging.WARNING), _pid_file(SPEC, 42):
        pass
    assert victim.read_text() == "precious"
    assert "--save_pid" in caplog.text and "File exists" in caplog.text


def test_nothing_is_written_unless_asked_for(path: Path) -> None:
    with _pid_file(LaunchSpec(command=("x",)), 42):
        assert not path.exists()
