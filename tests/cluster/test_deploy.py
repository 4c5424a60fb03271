"""The whole deployment on this machine, twice, and its undoing.

The prefix starts with a virtual environment that already sees this environment's packages, so that the test neither
downloads nor unpacks torch; everything else is what `make deploy` does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.ansible_runs import ROOT, recap, run_playbook
from fixtures.tiny_models import build_bloom

pytestmark = [pytest.mark.slow, pytest.mark.native, pytest.mark.multiproc, pytest.mark.timeout(600)]

INVENTORY = ROOT / "inventories/local"


def seeded_prefix(prefix: Path) -> Path:
    """Returns a prefix whose environment finds the packages of the environment that runs this test."""
    (prefix / "venv").mkdir(parents=True)
    (prefix / ".corebound-prefix").write_text("made by a test\n", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "venv", str(prefix / "venv")], check=True)
    site = next((prefix / "venv/lib").glob("python3*/site-packages"))
    (site / "packages-of-the-test.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return prefix


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Returns the variables of a deployment into temporary folders."""
    folder = tmp_path_factory.mktemp("deploy")
    subprocess.run([sys.executable, str(ROOT / "runtime/packaging/build_wheel.py")], check=True, timeout=500)
    yield {
        "corebound_prefix": str(seeded_prefix(folder / "prefix")),
        "corebound_link_dir": str(folder / "bin"),
        "corebound_model": str(build_bloom(folder / "tiny", tokenizer=True)),
        "corebound_reports_dir": str(folder / "reports"),
        "cluster_tests_max_new_tokens": 4,
    }


def test_deploying_twice_changes_nothing_and_reset_leaves_nothing(variables: dict[str, Any]) -> None:
    prefix, reports = Path(variables["corebound_prefix"]), Path(variables["corebound_reports_dir"])
    link = Path(variables["corebound_link_dir"]) / "corebound"

    first = run_playbook("site.yml", INVENTORY, timeout_s=300, **variables)
    assert first.returncode == 0, first.stdout + first.stderr
    assert recap(first.stdout)["changed"] > 0
    assert "localhost slots=" in (prefix / "etc/hostfile").read_text(encoding="utf-8")
    version = subprocess.run([str(link), "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert version.stdout.startswith("corebound")

    report = json.loads((reports / "smoke.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "pass"
    assert report["hosts"][0]["tokens_per_s"] > 0
    assert {check["name"] for check in report["checks"]} >= {"ranks are on disjoint cores", "there is text"}

    dry = run_playbook("site.yml", INVENTORY, "--check", timeout_s=300, **variables)
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert recap(dry.stdout)["changed"] == 0

    second = run_playbook("site.yml", INVENTORY, timeout_s=300, **variables)
    assert second.returncode == 0, second.stdout + second.stderr
    assert recap(second.stdout)["changed"] == 0

    undone = run_playbook("reset.yml", INVENTORY, timeout_s=120, **variables)
    assert undone.returncode == 0, undone.stdout + undone.stderr
    assert not prefix.exists() and not link.exists() and not reports.exists()
    again = run_playbook("reset.yml", INVENTORY, timeout_s=120, **variables)
    assert recap(again.stdout)["changed"] == 0


def test_a_dry_run_on_a_new_prefix_says_what_it_would_do_and_does_nothing(
    variables: dict[str, Any], tmp_path: Path
) -> None:
    places = {
        "corebound_prefix": str(tmp_path / "prefix"),
        "corebound_link_dir": str(tmp_path / "bin"),
        "corebound_reports_dir": str(tmp_path / "reports"),
    }
    done = run_playbook("site.yml", INVENTORY, "--check", timeout_s=300, **{**variables, **places})
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert f"check mode: localhost has no {tmp_path}/prefix/venv; deploy would make it" in said
    assert "check mode: the smoke run is left out" in said
    assert recap(done.stdout)["changed"] > 0
    assert list(tmp_path.iterdir()) == []


def test_reset_refuses_a_folder_that_deploy_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "models/demo").mkdir(parents=True)
    done = run_playbook(
        "reset.yml", INVENTORY, corebound_prefix=str(tmp_path), corebound_reports_dir=str(tmp_path / "reports")
    )
    assert done.returncode != 0
    assert "was not made by deploy" in " ".join(done.stdout.split())
    assert (tmp_path / "models/demo").is_dir()
