from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from corebound import native, native_ccl
from corebound.accelerator import OpBuilder, get_accelerator
from corebound.accelerator.cpu import CpuAccelerator
from corebound.accelerator.op_builder import compiling, prebuilt, simd
from corebound.errors import ConfigError, KernelError
from corebound.topology.isa import REQUIRED_FEATURES, assess_isa


class Small(OpBuilder):
    """An operator of nothing but C, so that its compilation takes no time."""

    def absolute_name(self) -> str:
        return "corebound_small"

    def sources(self) -> list[str]:
        return ["", "small.cpp"]

    def include_paths(self) -> list[str]:
        return ["include", "/elsewhere"]


@pytest.fixture
def in_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Small's files are looked for."""
    from corebound.accelerator.op_builder import builder

    monkeypatch.setattr(builder.inspect, "getfile", lambda _: str(tmp_path / "builder.py"))
    (tmp_path / "small.cpp").write_text("int unused;\n", encoding="utf-8")
    return tmp_path


def test_a_builder_that_is_not_there_is_none_and_not_an_object() -> None:
    """DeepSpeed #4180, kernel injection on CPU: "create_op_builder for an unknown name returns an *instance*"; "callers
    that test `is None` are fooled".
    """
    accelerator = CpuAccelerator()
    assert accelerator.create_op_builder("InferenceBuilder") is None
    assert accelerator.get_op_builder("InferenceBuilder") is None
    assert accelerator.get_op_builder("") is None


def test_the_builders_of_the_package_are_told_by_name() -> None:
    accelerator = get_accelerator()
    for name in ("KernelsBuilder", "ShareMemCommBuilder", "CCLCommBuilder"):
        kind = accelerator.get_op_builder(name)
        assert kind is not None
        assert kind.__name__ == name
        assert isinstance(accelerator.create_op_builder(name), kind)
    assert accelerator.op_builder_dir() == prebuilt.__name__
    assert accelerator.build_extension().__name__ == "BuildExtension"


@pytest.mark.native
def test_prebuilt_operators_are_loaded_and_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def compiles(*_: Any, **__: Any) -> Any:
        pytest.fail("compiled")

    monkeypatch.setattr(subprocess, "Popen", compiles)
    monkeypatch.setattr(compiling, "load", compiles)
    accelerator = CpuAccelerator()
    kernels = accelerator.create_op_builder("KernelsBuilder")
    assert kernels is not None
    assert kernels.is_compatible()
    x = torch.randn(2, 8)
    operators = kernels.load()
    assert torch.allclose(operators.silu_mul(x), torch.nn.functional.silu(x[:, :4]) * x[:, 4:], atol=1e-6)
    shared = accelerator.create_op_builder("ShareMemCommBuilder")
    assert shared is not None
    assert shared.load().corebound_comm_segment_bytes is not None
    assert not (tmp_path / "cache").exists()


def test_a_prebuilt_library_that_is_missing_is_incompatible_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> Any:
        raise native_ccl.CclUnavailableError("oneCCL: libcorebound_ccl.so was not built")

    monkeypatch.setattr(native_ccl, "require", missing)
    monkeypatch.setattr(logging.getLogger("corebound"), "propagate", True)
    builder = CpuAccelerator().create_op_builder("CCLCommBuilder")
    assert builder is not None
    assert builder.is_compatible() is False
    assert not caplog.records
    assert builder.is_compatible(verbose=True) is False
    assert "operators CCLComm: oneCCL: libcorebound_ccl.so was not built" in caplog.text


def test_a_prebuilt_library_without_its_file_is_incompatible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "LIBRARY_DIR", tmp_path)
    monkeypatch.setattr(native, "core_library", native.core_library.__wrapped__)
    assert not prebuilt.ShareMemCommBuilder().is_compatible()
    with pytest.raises(KernelError, match="native library missing"):
        prebuilt.ShareMemCommBuilder().load()
    with pytest.raises(KernelError, match="come built"):
        prebuilt.KernelsBuilder().builder()


def test_paths_are_resolved_beside_the_file_of_the_builder_and_empty_ones_dropped(in_checkout: Path) -> None:
    builder = Small()
    assert builder.source_paths() == [in_checkout / "small.cpp"]
    extension = builder.builder()
    assert extension.sources == [str(in_checkout / "small.cpp")]
    assert str(in_checkout / "include") in extension.include_dirs
    assert "/elsewhere" in extension.include_dirs
    assert builder.name == "Small"


def test_code_is_built_for_what_processor_and_system_allow_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPEX #326: ISA detection under a hypervisor that hides XCR0: what the processor lists cannot all be run."""
    hidden = assess_isa(
        {
            "features": dict.fromkeys(REQUIRED_FEATURES["avx512"], True), "os_avx": True, "os_avx512": False,
            "os_amx": False, "xcr0": 7, "amx_permission": False, "brand": "x",
            "variants": [
                {"name": "avx512", "supported": False, "missing": ["os_avx512"]},
                {"name": "avx2", "supported": True, "missing": []},
                {"name": "generic", "supported": True, "missing": []},
            ],
        },
        REQUIRED_FEATURES["avx512"],
    )  # fmt: skip
    simd._best.cache_clear()
    monkeypatch.setattr(simd, "read_topology", lambda: type("Machine", (), {"isa": hidden}))
    assert Small().cxx_args() == ["-O3", "-std=c++20", "-mavx2", "-mfma", "-mf16c"]
    assert (Small.cpu_arch(), Small.simd_width(), Small.simd_variant()) == (
        "-mavx2 -mfma -mf16c",
        "-D__AVX256__",
        "avx2",
    )
    simd._best.cache_clear()


@pytest.mark.parametrize(
    ("variant", "width", "flag"),
    [("generic", "-D__SCALAR__", None), ("avx2", "-D__AVX256__", "-mavx2"), ("amx", "-D__AVX512__", "-mamx-tile")],
)
def test_the_variant_of_the_environment_is_the_one_that_is_compiled_for(
    monkeypatch: pytest.MonkeyPatch, variant: str, width: str, flag: str | None
) -> None:
    monkeypatch.setenv("COREBOUND_ISA", variant)
    assert OpBuilder.simd_width() == width
    flags = OpBuilder.cpu_arch().split()
    assert (flag in flags) if flag else not flags
    done = subprocess.run(
        ["c++", *flags, "-fsyntax-only", "-x", "c++", "-"], input="", text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_variant_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREBOUND_ISA", "avx1024")
    with pytest.raises(ConfigError, match="COREBOUND_ISA: 'avx1024'"):
        OpBuilder.cpu_arch()


def test_without_a_compiler_a_builder_is_incompatible_and_load_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, in_checkout: Path
) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None if name == "ninja" else name)
    assert not Small().is_compatible()
    with pytest.raises(KernelError, match="Small: cannot be built: not on PATH: ninja"):
        Small().load()
    assert Small.command_exists("ninja") is False


def test_a_compiler_of_several_words_is_looked_for_by_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "ccache-that-is-not-there g++")
    assert "ccache-that-is-not-there" in compiling.missing_tools()
    assert "g++" not in compiling.missing_tools()


def test_a_source_that_is_missing_is_named(in_checkout: Path) -> None:
    (in_checkout / "small.cpp").unlink()
    assert "source missing" in Small().incompatibility()
    with pytest.raises(KernelError, match=r"Small: source .*small\.cpp: No such file"):
        Small().load()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_cache_that_others_can_write_is_refused(in_checkout: Path, level: int) -> None:
    directory = in_checkout / "cache/corebound/operators" / f"corebound_small-{compiling._digest(Small())}"
    directory.mkdir(parents=True)
    [directory, *directory.parents][level].chmod(0o777)
    with pytest.raises(KernelError, match=r"only this user can write, found owner .* mode 777"):
        Small().load()


def test_a_cache_that_cannot_be_made_is_named_with_the_variable(
    in_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (in_checkout / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_checkout / "file"))
    with pytest.raises(KernelError, match=r"cache .*file/corebound") as caught:
        Small().load()
    assert "XDG_CACHE_HOME" in str(caught.value.hint)


def test_what_the_compiler_says_is_in_the_error_and_in_the_log_of_the_builder(
    in_checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    (in_checkout / "small.cpp").write_text("int broken = undeclared_name;\n", encoding="utf-8")
    builder = Small()
    with pytest.raises(KernelError, match="undeclared_name"):
        builder.load()
    assert "undeclared_name" in str(builder.error_log)
    assert capfd.readouterr().out == ""
    # And a second attempt is not held up by what the first one left behind.
    with pytest.raises(KernelError, match="undeclared_name"):
        Small().load()


def test_another_text_flag_or_compiler_is_another_library(in_checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's comm builders: "no fallback body for AVX2-only hosts: SIGILL". Such hosts may share a cache."""
    first = compiling._digest(Small())
    assert compiling._digest(Small()) == first
    monkeypatch.setenv("COREBOUND_ISA", "generic")
    second = compiling._digest(Small())
    monkeypatch.setattr(torch, "__version__", "9.9")
    third = compiling._digest(Small())
    (in_checkout / "small.cpp").write_text("int other;\n", encoding="utf-8")
    fourth = compiling._digest(Small())
    (in_checkout / "include/deep").mkdir(parents=True)
    (in_checkout / "include/deep/small.hpp").write_text("int header;\n", encoding="utf-8")
    fifth = compiling._digest(Small())
    (in_checkout / "beside.h").touch()
    assert len({first, second, third, fourth, fifth, compiling._digest(Small())}) == 6


class PythonModule(Small):
    """A module of Python in place of operators of torch."""

    registers_operators = False

    def absolute_name(self) -> str:
        return "corebound_module"

    def cxx_args(self) -> list[str]:
        return ["-O0", "-DANSWER=42"]


def test_a_python_module_can_be_built_too_whatever_the_umask(
    in_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    source = """
    #include <Python.h>
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "corebound_module", nullptr, -1, nullptr};
    PyMODINIT_FUNC PyInit_corebound_module() {
      PyObject *module = PyModule_Create(&definition);
      PyModule_AddIntConstant(module, "answer", ANSWER);
      return module;
    }
    """
    (in_checkout / "small.cpp").write_text(source, encoding="utf-8")
    # The default where each user has a group of his own.
    before = os.umask(0o002)
    try:
        assert PythonModule().load().answer == 42
    finally:
        os.umask(before)
    assert PythonModule().load() is PythonModule().load()


def test_a_function_is_found_in_the_libraries_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OpBuilder.has_function("malloc_trim")
    assert not OpBuilder.has_function("no_such_function")
    assert not OpBuilder.has_function("malloc_trim", ["no-such-library"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelError, match="no C\\+\\+ compiler 'no-such-compiler'"):
        OpBuilder.has_function("malloc_trim")
