"""The role ipex: what it refuses and what it removes; tests/ipex tests what it installs, where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.ansible_runs import ROOT, run_playbook, run_tool

LOCAL = ROOT / "inventories/local"
pytestmark = pytest.mark.slow


def reset(prefix: Path) -> tuple[int, str]:
    """Returns exit code and output of the role's undoing."""
    words = ["ansible", "nodes", "-i", "inventories/defaults", "-i", LOCAL, "-m", "ansible.builtin.include_role"]
    done = run_tool(*words, "-a", "name=ipex tasks_from=reset.yml", "-e", f"ipex_prefix={prefix}")
    return done.returncode, done.stdout + done.stderr


def test_a_folder_that_is_not_its_own_is_neither_filled_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine", encoding="utf-8")
    done = run_playbook("../tests/cluster/one_role.yml", LOCAL, one_role="ipex", ipex_prefix=str(tmp_path))
    assert done.returncode != 0
    assert "exists but was not made by the role ipex" in " ".join(done.stdout.split())
    code, output = reset(tmp_path)
    assert code != 0
    assert "Nothing was removed" in " ".join(output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_reset_removes_its_own_folder_and_does_nothing_a_second_time(tmp_path: Path) -> None:
    prefix = tmp_path / "ipex"
    (prefix / "venv").mkdir(parents=True)
    (prefix / ".corebound-ipex").touch()
    code, output = reset(prefix)
    assert code == 0, output
    assert not prefix.exists()
    code, output = reset(prefix)
    assert code == 0, output
