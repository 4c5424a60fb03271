"""The image of the IPEX flavour, where pip finds torch 2.8's CPU build: the demo model through the extension."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest

from images.support import Images, build, own_podman
from lab import machine
from lab.layout import ROOT

pytestmark = [pytest.mark.images, pytest.mark.slow, pytest.mark.timeout(3600)]
INSTALL_TORCH = ROOT / "playbooks/roles/runtime/files/install_torch.py"
SMOKE = ROOT / "playbooks/roles/ipex/files/ipex_smoke.py"


@pytest.fixture(scope="module")
def flavour() -> Images:
    """Returns the image, built when a layer is another than last time."""
    reason = machine.why_not()
    if reason:
        pytest.skip(reason)
    with (ROOT / "pyproject.toml").open("rb") as file:
        torch = tomllib.load(file)["tool"]["corebound-ipex"]["torch"]
    asked = subprocess.run(
        [sys.executable, str(INSTALL_TORCH), "--resolve-only", torch], capture_output=True, timeout=300, check=False
    )
    if asked.returncode != 0:
        pytest.skip(f"this machine lacks a CPU build of torch {torch} in reach of pip")
    machine.install_packages()
    return build(own_podman(), "--flavour=ipex")


def test_the_demo_model_runs_through_the_extension_and_keeps_the_promise(flavour: Images) -> None:
    options = (f"--volume={SMOKE}:/mnt/ipex_smoke.py:ro",)
    done = flavour.run("python", "/mnt/ipex_smoke.py", "--native=corebound", options=options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["verdict"] == "pass"
    assert found["torch"].startswith("2.8.")


def test_its_operators_are_those_for_its_torch(flavour: Images) -> None:
    checks = json.loads(flavour.run("corebound", "doctor", "--json").stdout)["checks"]
    status = {check["name"]: check["status"] for check in checks}
    assert (status["native-operators"], status["oneccl"]) == ("pass", "pass")
    assert flavour.inspect(flavour.runtime)["Labels"]["corebound.flavour"] == "ipex"
