"""setup_venv.py: the stamp covers what decides the environment, and an old Python is told at once."""

from __future__ import annotations

import sys
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


def test_control_needs_no_compiler_and_is_covered_by_deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[tuple[object, ...]] = []
    monkeypatch.setattr(script, "run_quietly", lambda *command: programs.append(command[2:]))
    monkeypatch.setattr(script, "fill_environment", lambda venv, purpose, allow_cuda: None)
    script.prepare(tmp_path, "control", allow_cuda=False)
    assert programs == [()]
    (tmp_path / ".setup-control").unlink()
    script.prepare(tmp_path, "deploy", allow_cuda=False)
    script.prepare(tmp_path, "control", allow_cuda=False)
    assert programs == [(), script.PROGRAMS]
    script.prepare(tmp_path, "develop", allow_cuda=False)
    assert programs[2:] == [(*script.PROGRAMS, "--headers")]


def bundle_for(folder: Path, python: str) -> Path:
    """Returns a folder in the shape of an unpacked bundle."""
    (folder / "wheels/control").mkdir(parents=True)
    (folder / "wheels/control/pip-1-py3-none-any.whl").touch()
    (folder / "MANIFEST.json").write_text(f'{{"platform": {{"python": "{python}"}}}}', encoding="utf-8")
    return folder


def test_a_bundle_asks_no_index_and_installs_no_system_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[tuple[object, ...], dict[str, str]]] = []
    monkeypatch.setattr(script, "run_quietly", lambda *command: pytest.fail(f"ran {command}"))
    monkeypatch.setattr(script, "run", lambda *command, **variables: steps.append((command, variables)))
    bundle = bundle_for(tmp_path / "bundle", f"{sys.version_info[0]}.{sys.version_info[1]}")
    (tmp_path / "venv").mkdir()
    script.prepare(tmp_path / "venv", "control", allow_cuda=False, bundle=bundle)
    assert "--without-pip" in steps[0][0]
    assert steps[1][1]["PIP_NO_INDEX"] == "1" and steps[1][1]["PIP_CONFIG_FILE"] == "/dev/null"


def test_a_bundle_for_another_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"the bundle is for Python 3\.99, found 3\."):
        script.check_bundle_python(bundle_for(tmp_path / "bundle", "3.99"))
