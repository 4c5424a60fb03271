"""The probe of the host_checks role: every failing check says what was found, what was expected and what to set."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.tools.loading import load_script

probe = load_script("playbooks/roles/host_checks/files/probe.py")


@pytest.mark.parametrize(("machine", "status"), [("x86_64", "pass"), ("aarch64", "fail")])
def test_only_x86_is_accepted(machine: str, status: str) -> None:
    assert probe.check_machine(machine, "Linux")["status"] == status


@pytest.mark.parametrize(
    ("version", "status"), [((3, 11, 0), "pass"), ((3, 13, 1), "pass"), ((3, 9, 2), "fail"), ((4, 0, 0), "pass")]
)
def test_versions_are_compared_as_numbers(version: tuple[int, ...], status: str) -> None:
    assert probe.check_python(version, "3.11")["status"] == status


def test_a_prefix_below_a_file_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = probe.check_prefix(tmp_path / "file/corebound")
    assert found["status"] == "fail"
    assert "corebound_prefix" in found["hint"]


def test_a_prefix_that_can_be_made_passes_and_is_not_made(tmp_path: Path) -> None:
    assert probe.check_prefix(tmp_path / "a/b")["status"] == "pass"
    assert not (tmp_path / "a").exists()


def test_a_full_disk_fails_until_the_runtime_is_there(tmp_path: Path) -> None:
    assert probe.check_disk(tmp_path, 1e9)["status"] == "fail"
    (tmp_path / "venv").mkdir()
    assert probe.check_disk(tmp_path, 1e9)["status"] == "pass"


@pytest.mark.parametrize(("kib", "status"), [(8 << 20, "pass"), (1 << 20, "fail")])
def test_memory_is_read_from_meminfo(kib: int, status: str) -> None:
    assert probe.check_memory(f"MemTotal: {kib} kB\nMemFree: 1 kB\n", 2)["status"] == status


def test_a_small_shm_names_the_command_that_enlarges_it(tmp_path: Path) -> None:
    found = probe.check_shm(tmp_path / "missing", 64)
    assert found["status"] == "fail"
    assert "size=64M" in found["hint"]


@pytest.mark.parametrize(
    ("flags", "smallest", "status", "said"),
    [
        ("fma avx2 f16c", "avx2", "pass", "instructions of avx2"),
        ("fma avx2 f16c avx512f avx512bw avx512dq avx512vl amx_tile", "avx512", "pass", "instructions of avx512"),
        (
            "fma avx2 f16c avx512f avx512bw avx512dq avx512vl avx512_bf16",
            "avx512_bf16",
            "fail",
            "of avx512 and lacks avx512_vnni",
        ),
        ("fma avx2 f16c", "avx512", "fail", "of avx2 and lacks avx512bw avx512dq avx512f avx512vl"),
        ("sse4_2", "generic", "pass", "instructions of generic"),
        ("sse4_2", "avx2", "fail", "lacks avx2 f16c fma"),
    ],
)
def test_the_instructions_of_a_variant_are_asked_for(flags: str, smallest: str, status: str, said: str) -> None:
    found = probe.check_isa(f"processor : 0\nflags\t\t: {flags}\n", smallest)
    assert found["status"] == status
    assert said in found["detail"]
