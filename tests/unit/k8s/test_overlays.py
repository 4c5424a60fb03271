from __future__ import annotations

import json
import shutil
import subprocess
from itertools import zip_longest
from pathlib import Path

import pytest

from corebound.k8s.definition import read_definition
from corebound.k8s.documents import parse_documents, read_documents
from corebound.k8s.findings import join
from corebound.k8s.schema import KubernetesSchemas
from corebound.k8s.validate import Validator

ROOT = Path(__file__).resolve().parents[3]
OVERLAYS = ROOT / "k8s/overlays"
# What each overlay changes: [before, after] by field, None for one that is not there.
EXPECTED = json.loads((ROOT / "tests/k8s/overlays.json").read_text())

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="this machine lacks kubectl")


def rendered(name):
    command = ["kubectl", "kustomize", str(OVERLAYS / name)]
    return parse_documents(
        subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout, name
    )


def differences(before, after, path):
    """Yield [before, after] of each field that is not the same, a subtree that is new or gone as one."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), join(path, key))
    elif isinstance(before, list) and isinstance(after, list):
        for index, (old, new) in enumerate(zip_longest(before, after)):
            yield from differences(old, new, join(path, index))
    elif before != after:
        yield path, [before, after]


def changes(name):
    before = {document.kind: document.data for document in read_documents(ROOT / "k8s/mpijob-bloom.yaml")}
    after = {document.kind: document.data for document in rendered(name)}
    # An object that an overlay leaves out is told by its kind.
    gone = {kind: ["there", "not there"] for kind in before if kind not in after}
    return gone | dict(differences({kind: before[kind] for kind in before if kind in after}, after, ""))


def test_the_manifest_that_overlays_build_on_is_the_one_for_users():
    assert (ROOT / "k8s/base/mpijob-bloom.yaml").read_bytes() == (ROOT / "k8s/mpijob-bloom.yaml").read_bytes()


def test_every_overlay_has_its_expected_changes():
    assert {path.name for path in OVERLAYS.iterdir()} == set(EXPECTED)


@needs_kubectl
@pytest.mark.parametrize("name", EXPECTED)
def test_an_overlay_changes_what_it_says_and_nothing_else(name):
    assert changes(name) == EXPECTED[name]


@needs_kubectl
@pytest.mark.parametrize("name", EXPECTED)
def test_what_an_overlay_makes_is_valid(name):
    level = "privileged" if name == "host-network" else "restricted"
    findings = Validator(read_definition(None), KubernetesSchemas(), level).findings(rendered(name))
    assert {finding.rule for finding in findings} == {"plan/image-digest"}


@needs_kubectl
def test_only_the_host_s_network_asks_for_a_privileged_namespace():
    findings = Validator(read_definition(None), KubernetesSchemas()).findings(rendered("host-network"))
    assert {finding.rule for finding in findings if finding.severity == "error"} == {
        "pod-security/host-namespaces",
        "pod-security/host-ports",
    }
