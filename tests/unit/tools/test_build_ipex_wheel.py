"""build_ipex_wheel.py: the flavour's metadata, from that of the runtime."""

from __future__ import annotations

import sys
import tomllib
from types import ModuleType

import pytest

from unit.tools.loading import ROOT, load_script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # A script finds the one beside it because it is started from there.
    monkeypatch.syspath_prepend(ROOT / "runtime/packaging")
    monkeypatch.delitem(sys.modules, "build_wheel", raising=False)
    return load_script("runtime/packaging/build_ipex_wheel.py")


def pins() -> tuple[str, list[str]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    return project["tool"]["corebound-ipex"]["torch"], project["dependency-groups"]["ipex"]


def test_the_flavour_asks_for_its_own_torch_and_is_told_by_its_version(script: ModuleType) -> None:
    torch, requirements = pins()
    text = (ROOT / "runtime/pyproject.toml").read_text(encoding="utf-8")
    usual, flavour = tomllib.loads(text), tomllib.loads(script.flavour_project(text, torch, requirements))
    assert flavour["project"]["version"] == usual["project"]["version"] + "+ipex"
    wanted = flavour["project"]["dependencies"]
    assert "torch==2.8.*" in wanted
    assert "intel-extension-for-pytorch==2.8.0" in wanted
    assert not [line for line in wanted if line.startswith("torch>=")]
    same = {key: value for key, value in flavour["project"].items() if key not in ("version", "dependencies")}
    assert same == {key: value for key, value in usual["project"].items() if key in same}
    assert flavour["tool"] == usual["tool"]


def test_metadata_of_another_form_is_an_error_and_not_a_flavour_that_asks_for_the_wrong_torch(
    script: ModuleType,
) -> None:
    with pytest.raises(ValueError, match="expected one `version =`"):
        script.flavour_project('version = "1"\ndependencies = ["torch>=2.10"]\n', "2.8.0", [])


def test_the_extension_and_its_torch_are_pinned_to_one_series() -> None:
    torch, requirements = pins()
    extension = next(line for line in requirements if line.startswith("intel-extension-for-pytorch=="))
    assert extension.partition("==")[2].split(".")[:2] == torch.split(".")[:2]
