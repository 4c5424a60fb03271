"""Malformed manifests get the same verdict from `corebound k8s validate` as from a real API server, if it objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.access import Access
from k8s.definition import is_upstream
from k8s.jobs import MANIFEST, Run

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(900)]
FOLDER = Path(__file__).parent / "manifests"
EXPECTED: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "expected.yml").read_text(encoding="utf-8"))


@pytest.fixture
def run(access: Access, tmp_path: Path) -> Run:
    """Returns the namespace default: nothing is made in it."""
    return Run(access, "default", tmp_path)


def accepted_by_the_api_server(run: Run, path: Path) -> tuple[bool, str]:
    """Returns whether the API server would take a manifest, and its words."""
    words = ("apply", "--server-side", "--dry-run=server", "--namespace", run.namespace, "-f", str(path))
    done = run.access.kubectl(*words, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def test_there_are_ten_malformed_manifests_or_more() -> None:
    assert len(EXPECTED) >= 10
    assert set(EXPECTED) == {path.stem for path in (FOLDER / "bad").glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_malformed_manifest_gets_the_same_verdict_with_and_without_a_cluster(name: str, run: Run) -> None:
    expected = EXPECTED[name]
    path = FOLDER / "bad" / f"{name}.yaml"

    offline = run.corebound_offline("validate", str(path))
    accepted, words = accepted_by_the_api_server(run, path)

    assert offline.returncode == 2, offline.stderr
    assert expected["path"] in offline.stdout + offline.stderr
    assert expected["reason"] in offline.stdout + offline.stderr
    # The compact definition does not know what is inside a pod template.
    judged = is_upstream() or ".template." not in expected["path"]
    assert accepted == (expected["api_server"] == "accepts" or not judged), words


@pytest.mark.parametrize("path", [FOLDER / "good.yaml", MANIFEST], ids=lambda path: path.stem)
def test_a_manifest_that_is_right_is_accepted_by_both(path: Path, run: Run) -> None:
    offline = run.corebound_offline("validate", str(path))
    accepted, words = accepted_by_the_api_server(run, path)

    assert offline.returncode == 0, offline.stdout + offline.stderr
    assert accepted, words
