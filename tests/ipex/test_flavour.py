"""The IPEX flavour as the role `ipex` installs it: its torch, our operators built for it, and the extension at work.

Looks where `make deploy` with the group `ipex` puts it, or in the virtual environment that IPEX_VENV names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "playbooks/roles/ipex/files/ipex_smoke.py"
PLACES = ("/opt/corebound/ipex/venv", "~/.local/share/corebound/ipex/venv")
PARITY = ("attention_parity", "kernel_parity", "kernel_arguments", "kernel_tracing", "optimize_parity")
# Test tools are plain Python: the flavour borrows ours, since deploying it brings none.
TOOLS = ("_pytest", "pytest", "py.py", "pluggy", "iniconfig", "pygments")

pytestmark = [pytest.mark.slow, pytest.mark.ipex, pytest.mark.native, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def flavour() -> Path:
    """The Python of the flavour."""
    named = os.environ.get("IPEX_VENV")
    places = [Path(place).expanduser() for place in ([named] if named else PLACES)]
    found = [place / "bin/python" for place in places if (place / "bin/python").exists()]
    if not found:
        listed = ", ".join(map(str, places))
        pytest.skip(f"this machine lacks the IPEX flavour: no {listed} (group ipex of make deploy, or IPEX_VENV)")
    return found[0]


def run(python: Path, *words: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Returns what a command in the flavour came to; this checkout's packages are out of its sight."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(python), *map(str, words)],
        cwd=folder,
        env={**environ, "HF_HUB_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )


def answer(python: Path, code: str, folder: Path, **variables: str) -> Any:
    """Returns what a few lines of Python print as JSON on their last line."""
    done = run(python, "-c", code, folder=folder, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_flavour_holds_the_extension_its_torch_and_our_operators_for_it(flavour: Path, tmp_path: Path) -> None:
    code = """
import json, importlib.metadata as m, corebound, torch
from corebound import kernels, native
native.load_torch_ops()
rows = {row["implementation"] for row in kernels.table()}
versions = [m.version(name) for name in ("intel_extension_for_pytorch", "transformers", "corebound")]
print(json.dumps([torch.__version__, str(native.torch_abi()), sorted(rows), *versions]))
"""
    torch, abi, implementations, extension, transformers, corebound = answer(flavour, code, tmp_path)
    assert torch.startswith("2.8.")
    assert abi.startswith("torch 2.8 and no other")
    assert implementations == ["native"]
    assert (extension, transformers) == ("2.8.0", "4.51.3")
    assert corebound.endswith("+ipex")


def test_doctor_accepts_the_flavours_torch(flavour: Path, tmp_path: Path) -> None:
    done = run(flavour, "-m", "corebound", "doctor", "--json", folder=tmp_path)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["torch"]["status"] == "pass", checks["torch"]


def test_the_operators_of_the_other_build_say_which_torch_they_need(flavour: Path, tmp_path: Path) -> None:
    """Loaded all the same they ended in "undefined symbol: torch_library_impl"."""
    code = """
import json
from corebound import native
from corebound.errors import KernelError
try:
    native.load_torch_ops()
except KernelError as error:
    print(json.dumps([error.message, error.hint]))
"""
    message, hint = answer(flavour, code, tmp_path, PYTHONPATH=str(ROOT / "runtime"))
    assert "needs torch 2.10 or later, found torch 2.8." in message
    assert "docs/ipex.md" in hint


@pytest.mark.parametrize("name", PARITY)
def test_the_parity_tests_pass_in_the_flavour(flavour: Path, tmp_path: Path, name: str) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    site = Path(pytest.__file__).resolve().parents[1]
    for tool in TOOLS:
        (tools / tool).symlink_to(site / tool)
    words = ["-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-p", "no:cacheprovider"]
    words += ["-o", f"pythonpath={ROOT / 'tests'}", ROOT / f"tests/parity/test_{name}.py"]
    done = run(flavour, *words, folder=tmp_path, PYTHONPATH=str(tools), PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 0, done.stdout
    print(f"{name}: {passed[0]}")


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_flavours_engine_says_in_float32_what_the_runtimes_says(
    flavour: Path, tmp_path: Path, num_ranks: int
) -> None:
    words = ["-m", "corebound", "generate", "--model", "demo", "--dtype", "float32", "--json", "--max-new-tokens", "40"]
    words += ["--prompt", "One morning", "--prompt", "Anna opened the door and"]
    words += [] if num_ranks == 1 else ["--num_accelerators", str(num_ranks)]
    tokens = []
    for python in (Path(sys.executable), flavour):
        done = run(python, *words, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        tokens.append([output["token_ids"] for output in json.loads(done.stdout)["outputs"]])
    assert tokens[0] == tokens[1]
    assert all(len(line) >= 20 for line in tokens[0])


def test_the_demo_model_through_the_extension_keeps_the_promise_about_its_tokens(flavour: Path, tmp_path: Path) -> None:
    done = run(flavour, SMOKE, "--native", Path(sys.executable).parent / "corebound", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    # Standard output is data: the extension's own words must not be there.
    found = json.loads(done.stdout)
    print(done.stdout)
    assert found["verdict"] == "pass"
    assert found["by"] == "by ipex.llm.optimize 2.8.0+cpu"
    assert found["num_replaced"] > 10


def test_tokens_that_are_no_tie_break_the_promise(flavour: Path, tmp_path: Path) -> None:
    """A runtime that says something else stands for an extension that computes something else."""
    fake = tmp_path / "corebound"
    outputs = [{"token_ids": [11, 12, 13, 14]} for _ in range(3)]
    fake.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps({'outputs': outputs})}\nEND\n", encoding="utf-8")
    fake.chmod(0o755)
    done = run(flavour, SMOKE, "--native", fake, "--max-new-tokens", "4", folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert json.loads(done.stdout)["verdict"] == "fail"


def test_a_module_that_is_no_known_model_goes_through_ipex_optimize(flavour: Path, tmp_path: Path) -> None:
    code = """
import copy, json, torch, corebound
torch.manual_seed(0)
layers = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 16)).eval()
x = torch.randn(4, 64)
with torch.no_grad():
    expected = copy.deepcopy(layers)(x)
    model = corebound.optimize(layers, dtype=torch.bfloat16, backend="ipex")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = (model(x).float() - expected).abs().max().item()
report = corebound.optimization_report(model)
print(report)
print(json.dumps([report.notes[0], [[c.before, c.after] for c in report.replaced], error]))
"""
    by, changes, error = answer(flavour, code, tmp_path)
    assert by == "by ipex.optimize 2.8.0+cpu"
    # The extension also rewrites what torch.fx can trace: the container becomes a GraphModule.
    assert changes.count(["Linear", "_IPEXLinear"]) == 2
    assert error < 0.02
