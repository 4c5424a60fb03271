"""system_packages.py: what is missing is installed, or named with the command that would install it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from unit.tools.loading import load_script

script = load_script("playbooks/roles/runtime/files/system_packages.py")


def test_only_programs_that_are_not_on_the_path_are_missing() -> None:
    found = {"g++": "/usr/bin/g++", "git": "/usr/bin/git"}
    assert script.missing_packages(["g++", "git", "numactl", "ssh"], found.get) == ["numactl", "openssh-client"]


def test_root_installs_without_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr(script, "root_words", list)
    monkeypatch.setattr(script.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(script, "apt_install", lambda packages, words: not installed.extend(packages))
    assert script.install(["g++", "numactl"])["changed"] is True
    assert installed == ["g++", "numactl"]


def test_without_rights_one_line_says_the_exact_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "root_words", lambda: None)
    with pytest.raises(SystemExit) as ended:
        script.install(["g++", "numactl"])
    assert ended.value.code == script.EXIT_MISSING
    assert "apt-get install -y --no-install-recommends g++ numactl" in capsys.readouterr().err.splitlines()[-1]


def test_without_numactl_it_goes_on_and_says_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "root_words", lambda: None)
    answer = script.install(["numactl"])
    assert answer["changed"] is False and answer["without"] == ["numactl"]
    assert "not bound to NUMA nodes" in capsys.readouterr().err


def test_nothing_missing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "root_words", lambda: pytest.fail("asked for rights without a need"))
    assert script.install([])["changed"] is False


def test_the_headers_are_asked_for_where_they_lack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script.sysconfig, "get_path", lambda name: str(tmp_path / name))
    assert script.headers_package() == [f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"]
    (tmp_path / "include").mkdir()
    (tmp_path / "include/Python.h").touch()
    assert script.headers_package() == []
