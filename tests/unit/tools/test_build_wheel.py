"""build_wheel.py: the wheel is keyed on its sources alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.tools.loading import load_script

script = load_script("runtime/packaging/build_wheel.py")


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """Returns a small source tree in the shape of runtime/."""
    for name in ("pyproject.toml", "corebound/__init__.py", "corebound/lib/libcorebound.so", "csrc/isa/isa.cpp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["pyproject.toml", "corebound/__init__.py", "csrc/isa/isa.cpp"])
def test_a_changed_source_makes_another_wheel(runtime: Path, name: str) -> None:
    before = script.fingerprint(runtime)
    (runtime / name).write_text("changed", encoding="utf-8")
    assert script.fingerprint(runtime) != before


def test_a_renamed_source_makes_another_wheel(runtime: Path) -> None:
    before = script.fingerprint(runtime)
    (runtime / "csrc/isa/isa.cpp").rename(runtime / "csrc/isa/other.cpp")
    assert script.fingerprint(runtime) != before


@pytest.mark.parametrize("name", ["corebound/lib/libcorebound.so", "corebound/__pycache__/x.pyc"])
def test_what_is_built_does_not_count(runtime: Path, name: str) -> None:
    before = script.fingerprint(runtime)
    (runtime / name).parent.mkdir(exist_ok=True)
    (runtime / name).write_text("built again", encoding="utf-8")
    assert script.fingerprint(runtime) == before
