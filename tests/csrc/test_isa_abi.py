"""The C functions of csrc/isa and the kernel table, as ctypes sees them: no torch is needed."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from corebound import native

pytestmark = pytest.mark.native

VARIANTS = ["amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "generic"]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    loaded = native.core_library()
    for name in ("corebound_isa_report", "corebound_isa_active", "corebound_kernel_table"):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


@pytest.fixture(scope="module")
def report(library: ctypes.CDLL) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(library.corebound_isa_report())
    return found


def test_the_report_agrees_with_the_kernels_cpuinfo(report: dict[str, Any]) -> None:
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.split(":")[1].split())
            break
    assert report["vendor"] in Path("/proc/cpuinfo").read_text()
    found = {name for name, present in report["features"].items() if present}
    # cpuinfo writes some names with other underscores, and leaves out what the operating system has switched off.
    assert flags & set(report["features"]) <= found
    assert ("avx2" in flags) == (report["features"]["avx2"] and report["os_avx"])


def test_variants_are_listed_best_first_and_generic_always_runs(report: dict[str, Any]) -> None:
    assert [row["name"] for row in report["variants"]] == VARIANTS
    assert report["variants"][-1] == {"name": "generic", "supported": True, "missing": []}
    for row in report["variants"]:
        assert row["supported"] == (not row["missing"])


def test_a_variant_above_one_that_cannot_run_cannot_run_either(report: dict[str, Any]) -> None:
    from_below = [row["supported"] for row in reversed(report["variants"])]
    assert from_below == sorted(from_below, reverse=True)


def test_amx_runs_only_with_the_permission_of_this_process(report: dict[str, Any]) -> None:
    amx = report["variants"][0]
    assert amx["supported"] <= (report["os_amx"] and report["amx_permission"])
    assert ("amx_permission" in amx["missing"]) == (not report["amx_permission"])


def test_every_variant_that_runs_can_be_forced_and_is_then_active_in_every_kernel(library: ctypes.CDLL) -> None:
    code = """
import ctypes, json, sys
from corebound.native import core_library
lib = core_library()
for name in ("corebound_isa_report", "corebound_isa_active", "corebound_kernel_table"):
    getattr(lib, name).restype = ctypes.c_char_p
for row in json.loads(lib.corebound_isa_report())["variants"]:
    if row["supported"]:
        assert lib.corebound_isa_force(row["name"].encode(), None, 0) == 0, row
        assert lib.corebound_isa_active().decode() == row["name"], row
        assert {op["active"] for op in json.loads(lib.corebound_kernel_table())} == {row["name"]}, row
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_forcing_what_cannot_run_lists_what_can_and_changes_nothing(library: ctypes.CDLL) -> None:
    before = library.corebound_isa_active()
    error = ctypes.create_string_buffer(512)
    assert library.corebound_isa_force(b"avx9", error, len(error)) == -1
    message = error.value.decode()
    assert message.startswith('instruction-set variant "avx9" is not known; expected one of ')
    assert message.endswith("generic")
    assert library.corebound_isa_active() == before


def test_a_short_error_buffer_is_cut_and_terminated(library: ctypes.CDLL) -> None:
    error = ctypes.create_string_buffer(b"\xff" * 16, 16)
    assert library.corebound_isa_force(b"avx9", error, 8) == -1
    assert error.raw[:8] == b"instruc\0"
    assert error.raw[8] == 0xFF


def test_the_kernel_table_names_every_op_of_the_package(library: ctypes.CDLL) -> None:
    from corebound.kernels import OPS

    rows = json.loads(library.corebound_kernel_table())
    assert [row["op"] for row in rows] == list(OPS)
    for row in rows:
        assert [variant["name"] for variant in row["variants"]] == VARIANTS
        assert all(set(v["dtypes"]) == {"float32", "bfloat16", "float16"} for v in row["variants"])


def _run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COREBOUND_")} | variables
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_environment_forces_a_variant_of_every_operator() -> None:
    code = "from corebound import kernels; print({(row['variant'], row['reason']) for row in kernels.table()})"
    done = _run(code, COREBOUND_ISA="generic")
    assert done.stdout.strip() == "{('generic', 'COREBOUND_ISA=generic')}", done.stderr


def test_the_environment_cannot_force_what_does_not_run() -> None:
    done = _run("from corebound import kernels; kernels.table()", COREBOUND_ISA="avx9")
    assert done.returncode == 1
    assert 'KernelError: instruction-set variant "avx9" is not known; expected one of' in done.stderr
