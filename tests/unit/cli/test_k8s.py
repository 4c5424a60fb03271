from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from corebound.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
GOOD = ROOT / "tests/k8s/manifests/good.yaml"
BAD = ROOT / "tests/k8s/manifests/bad/two-launchers.yaml"
DIGEST = "registry.example/corebound@sha256:" + "0" * 64


@pytest.fixture(autouse=True)
def no_definition(monkeypatch):
    monkeypatch.delenv("MPI_OPERATOR_MANIFEST", raising=False)


def test_render_writes_the_manifest_with_the_image_that_is_asked_for(tmp_path, capsys):
    values = str(ROOT / "inventories/k8s/mpijob-bloom.yml")
    assert main(["k8s", "render", values, "--image", DIGEST, "--output", str(tmp_path / "job.yaml")]) == 0
    assert (tmp_path / "job.yaml").read_text().count(f'image: "{DIGEST}"') == 2
    assert capsys.readouterr().out == ""


def test_render_refuses_an_image_that_is_none(capsys):
    assert main(["k8s", "render", str(ROOT / "inventories/k8s/mpijob-bloom.yml"), "--image", "a b"]) == 2
    assert "--image: image: expected NAME:TAG" in capsys.readouterr().err


def test_validate_says_once_that_it_uses_a_schema_of_its_own_and_accepts_a_good_manifest(capsys):
    assert main(["k8s", "validate", str(GOOD), str(GOOD)]) == 0
    said = capsys.readouterr()
    assert said.out == "2 objects, 0 errors, 0 warnings\n"
    assert said.err.count("no definition of MPIJob given") == 1


def test_validate_prints_file_object_field_and_reason_and_fails(capsys):
    assert main(["k8s", "validate", str(BAD)]) == 2
    first = capsys.readouterr().out.splitlines()[0]
    field = "spec.mpiReplicaSpecs.Launcher.replicas"
    assert first == f"error: {BAD}: MPIJob/small: {field}: expected exactly one launcher, found 2 [operator]"


def test_validate_prints_the_same_as_json(capsys):
    assert main(["k8s", "validate", str(BAD), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["valid"] is False
    assert report["definition"] is None
    (finding,) = report["findings"]
    assert (finding["document"], finding["rule"], finding["severity"]) == ("MPIJob/small", "operator", "error")


def test_validate_refuses_a_level_that_is_none_and_a_definition_that_is_none(capsys):
    assert main(["k8s", "validate", str(GOOD), "--pod-security", "restrict"]) == 2
    assert "did you mean `restricted`?" in capsys.readouterr().err
    assert main(["k8s", "validate", str(GOOD), "--definition", str(GOOD)]) == 2
    assert "expected the CustomResourceDefinition" in capsys.readouterr().err


def test_a_package_that_is_missing_is_an_error_with_the_line_for_pip(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["k8s", "validate", str(GOOD)]) == 2
    said = capsys.readouterr().err
    assert "needs the package pyyaml, which is not installed" in said
    # The Python that lacks it, and packages that an index has.
    assert f"hint: {sys.executable} -m pip install" in said
    assert "kubernetes>=" in said and "jsonschema>=" in said and "numpy" not in said


def test_no_command_of_k8s_loads_torch():
    code = (
        "import sys; from corebound.cli.k8s import SUBCOMMANDS\n"
        "import importlib\n"
        "for module, _ in SUBCOMMANDS.values(): importlib.import_module(module)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=False).returncode == 0
