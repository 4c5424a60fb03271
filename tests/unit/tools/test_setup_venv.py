"""setup_venv.py: the stamp covers what decides the environment, and an old Python is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.tools.loading import load_script

script = load_script("runtime/packaging/setup_venv.py")


def test_an_old_python_gets_the_version_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.sys, "version_info", (3, 10, 12))
    monkeypatch.setattr(script.sys, "version", "3.10.12 (main)")
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer is needed, found 3\.10\.12"):
        script.check_python()


def test_torch_and_pip_are_pinned_in_pyproject() -> None:
    assert set(script.pins()) == {"pip", "torch"}


def test_a_stamp_of_develop_covers_deploy_but_not_the_reverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(script, "run_quietly", lambda *command: None)
    monkeypatch.setattr(script, "fill_environment", lambda venv, purpose, allow_cuda: done.append(purpose))
    script.prepare(tmp_path, "deploy", allow_cuda=False)
    script.prepare(tmp_path, "deploy", allow_cuda=False)
    assert done == ["deploy"]
    script.prepare(tmp_path, "develop", allow_cuda=False)
    (tmp_path / ".setup-deploy").unlink()
    script.prepare(tmp_path, "deploy", allow_cuda=False)
    assert done == ["deploy", "develop"]
