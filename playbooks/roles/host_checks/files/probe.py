"""Looks at a machine before anything is installed and prints what it found, in the form of `corebound doctor --json`.

Runs on the node with nothing but Python, and writes nothing. Every check is reported; the exit code is always 0. Its
argument is a JSON object of what is expected. Which failures only warn is decided where all hosts' reports meet.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

GIB = 1 << 30
MIB = 1 << 20
# What the kernel calls the features that the variants of the kernels need, poorest first.
ISA_FLAGS = {
    "generic": set[str](),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512_vnni": {"avx512_vnni"},
    "avx512_bf16": {"avx512_bf16"},
    "amx": {"amx_tile", "amx_bf16"},
}


def check(name: str, passes: bool, found: str, expected: str = "", remedy: str = "") -> dict[str, str]:
    """Return one line of the report."""
    if passes:
        return {"name": name, "status": "pass", "detail": found, "hint": ""}
    return {"name": name, "status": "fail", "detail": f"{found}, expected {expected}", "hint": remedy}


def check_machine(machine: str, system: str) -> dict[str, str]:
    """Return whether this is Linux on x86-64."""
    passes = system == "Linux" and machine == "x86_64"
    return check(
        "platform", passes, f"found {system} on {machine}", "Linux on x86_64", "take this host out of the inventory"
    )


def check_python(version: tuple[int, ...], oldest: str) -> dict[str, str]:
    """Return whether the node's Python is new enough for the runtime."""
    found = ".".join(str(part) for part in version[:3])
    return check(
        "python",
        version[:2] >= tuple(int(part) for part in oldest.split(".")),
        f"found Python {found} ({sys.executable})",
        f"{oldest} or newer",
        "install a newer one on the node and name it in the variable corebound_python",
    )


def check_isa(cpuinfo: str, smallest: str) -> dict[str, str]:
    """Return whether the processor has the instructions of a variant and of all below it."""
    flags = next((set(line.split()) for line in cpuinfo.splitlines() if line.startswith("flags")), set[str]())
    names = list(ISA_FLAGS)
    lacking = {name: sorted(ISA_FLAGS[name] - flags) for name in names}
    best = next((names[index - 1] for index, name in enumerate(names) if lacking[name]), names[-1])
    missing = [flag for name in names[: names.index(smallest) + 1] for flag in lacking[name]]
    return check(
        "isa",
        not missing,
        f"the processor has the instructions of {best}" + (f" and lacks {' '.join(missing)}" if missing else ""),
        smallest,
        "take this host out of the inventory, or lower the variable host_checks_min_isa and accept slower ranks",
    )


def existing_part(path: Path) -> Path:
    """Return the part of a path that is there."""
    while not path.exists():
        path = path.parent
    return path


def check_prefix(prefix: Path) -> dict[str, str]:
    """Return whether the prefix can be written to, or made."""
    existing = existing_part(prefix)
    passes = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return check(
        "prefix",
        passes,
        f"{prefix} can be written" if passes else f"{prefix} cannot be written by this user",
        f"{existing} to be a folder that it may write to",
        "set the variable corebound_prefix to a folder that can be written, or connect as another user",
    )


def check_disk(prefix: Path, min_free_gib: float) -> dict[str, str]:
    """Return whether there is room for the runtime; an installed one needs no more."""
    existing = existing_part(prefix)
    free_gib = shutil.disk_usage(existing).free / GIB
    return check(
        "disk",
        free_gib >= min_free_gib or (prefix / "venv").is_dir(),
        f"{free_gib:.1f} GiB free at {existing}",
        f"{min_free_gib:g} GiB",
        "free some, or set the variable corebound_prefix to a folder on a larger disk",
    )


def check_memory(meminfo: str, min_memory_gib: float) -> dict[str, str]:
    """Return whether the machine has the least memory; `meminfo` is the text of /proc/meminfo."""
    total_kib = next((int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemTotal:")), 0)
    return check(
        "memory",
        total_kib / MIB >= min_memory_gib,
        f"{total_kib / MIB:.1f} GiB of memory",
        f"{min_memory_gib:g} GiB",
        "use a larger machine, or lower the variable host_checks_min_memory_gib for a small model",
    )


def check_shm(shm: Path, min_shm_mib: float) -> dict[str, str]:
    """Return whether ranks on this machine can talk through shared memory; without it they use slower sockets."""
    usage = shutil.disk_usage(shm) if shm.is_dir() else None
    size_mib, free_mib = (usage.total / MIB, usage.free / MIB) if usage else (0.0, 0.0)
    too_small = size_mib < min_shm_mib
    return check(
        "shm",
        not too_small and free_mib >= min_shm_mib,
        f"{shm} holds {size_mib:.0f} MiB, {free_mib:.0f} MiB of them free",
        f"{min_shm_mib:g} MiB free (ranks fall back to slower sockets)",
        f"mount -o remount,size={min_shm_mib:g}M {shm}" if too_small else f"remove what fills it: ls -l {shm}",
    )


def main() -> None:
    """Print the report."""
    expected: dict[str, Any] = json.loads(sys.argv[1])
    prefix = Path(expected["prefix"])
    checks = [
        check_machine(platform.machine(), platform.system()),
        check_python(sys.version_info[:3], expected["min_python"]),
        check_isa(Path("/proc/cpuinfo").read_text(encoding="utf-8"), expected["min_isa"]),
        check_prefix(prefix),
        check_disk(prefix, float(expected["min_free_gib"])),
        check_memory(Path("/proc/meminfo").read_text(encoding="utf-8"), float(expected["min_memory_gib"])),
        check_shm(Path("/dev/shm"), float(expected["min_shm_mib"])),  # noqa: S108 - looked at, nothing is put there
    ]
    print(json.dumps({"checks": checks}))


if __name__ == "__main__":
    main()
