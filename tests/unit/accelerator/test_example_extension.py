"""The extension of docs/accelerators.md, installed by pip, found by its entry point, compiled and run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from corebound.accelerator import AbstractAccelerator, get_accelerator
from fixtures.accelerator_packages import EXAMPLE, install_example

pytestmark = pytest.mark.slow
GUIDE = Path(__file__).parents[3] / "docs/accelerators.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_example(tmp_path_factory.mktemp("example"))


@pytest.fixture
def example(installed: Path, monkeypatch: pytest.MonkeyPatch) -> AbstractAccelerator:
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return get_accelerator()


def test_the_installed_extension_is_found_and_its_devices_are_real(example: AbstractAccelerator) -> None:
    assert example.name == "example"
    cpus = sorted(os.sched_getaffinity(0))
    assert example.device_count() == len(cpus)
    last = len(cpus) - 1
    with example.device(last):
        assert os.sched_getaffinity(0) == {cpus[last]}
        assert example.current_device() == last
    assert sorted(os.sched_getaffinity(0)) == cpus
    assert example.current_device() == 0


def test_its_operator_is_compiled_once_runs_and_checks_its_arguments(
    example: AbstractAccelerator, tmp_path: Path
) -> None:
    builder = example.create_op_builder("ScaleAddBuilder")
    assert builder is not None
    assert builder.is_compatible()
    operators = builder.load()
    x, y = torch.randn(3, 5), torch.randn(3, 5)
    assert torch.equal(operators.scale_add(x, y, 2.0), x + 2.0 * y)
    with pytest.raises(RuntimeError, match="expected float32"):
        operators.scale_add(x.double(), y.double(), 1.0)
    libraries = list((tmp_path / "cache").rglob("*.so"))
    assert len(libraries) == 1
    assert libraries[0].parent.stat().st_mode & 0o077 == 0
    before = libraries[0].stat().st_mtime_ns
    again = example.create_op_builder("ScaleAddBuilder")
    assert again is not None
    assert again.load() is operators
    assert libraries[0].stat().st_mtime_ns == before
    assert example.create_op_builder("KernelsBuilder") is None


SCRIPT = """
import corebound, torch
accelerator = corebound.get_accelerator()
builder = accelerator.create_op_builder("ScaleAddBuilder")
print(accelerator.name, builder and builder.load().scale_add(torch.ones(2), torch.ones(2), 3.0).tolist())
"""


def run_script(installed: Path, cache: Path, **variables: str) -> str:
    path = os.pathsep.join([str(installed), str(Path(sys.modules["corebound"].__file__ or "").parents[1])])
    environ = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache), **variables}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_processes_that_come_at_once_share_one_compilation(installed: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda _: run_script(installed, tmp_path / "c"), range(2)))
    assert outputs == ["example [4.0, 4.0]"] * 2
    assert len(list((tmp_path / "c").rglob("*.so"))) == 1


def test_without_a_visible_device_or_by_the_variable_the_cpu_is_used(installed: Path, tmp_path: Path) -> None:
    assert run_script(installed, tmp_path, EXAMPLE_VISIBLE_DEVICES="") == "cpu None"
    assert run_script(installed, tmp_path, COREBOUND_ACCELERATOR="cpu") == "cpu None"


def test_the_guide_shows_the_extension_as_it_is() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    shown = [
        '[project.entry-points."corebound.accelerators"]\nexample = "corebound_example.accelerator:ExampleAccelerator"',
        'class ExampleAccelerator(AbstractAccelerator):\n    name = "example"\n',
        "class ScaleAddBuilder(OpBuilder):\n",
        'def sources(self) -> list[str]:\n        return ["csrc/scale_add.cpp"]',
    ]
    unindented = "\n".join(line.removeprefix("    ") for line in guide.splitlines())
    files = "\n".join(
        path.read_text(encoding="utf-8") for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml")
    )
    for text in shown:
        assert text in unindented
        assert text in files
    for path in EXAMPLE.rglob("*.*"):
        if path.is_file() and path.name != "__init__.py" and "__pycache__" not in path.parts:
            assert path.name in guide
