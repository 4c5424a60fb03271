"""Looks at a machine before anything is installed and prints what it found, in the form of `corebound doctor --json`.

Runs on the node with nothing but Python, and writes nothing. Every check is reported; the exit code is always 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path

GIB = 1 << 30
MIB = 1 << 20


def check(name: str, status: str, detail: str, hint: str = "") -> dict[str, str]:
    """Return one line of the report."""
    return {"name": name, "status": status, "detail": detail, "hint": hint}


def check_machine(machine: str, system: str) -> dict[str, str]:
    """Return whether this is Linux on x86-64."""
    found = f"{system} on {machine}"
    if system == "Linux" and machine == "x86_64":
        return check("platform", "pass", found)
    return check("platform", "fail", f"found {found}, expected Linux on x86_64", "take this host out of the inventory")


def check_python(version: tuple[int, ...], oldest: str) -> dict[str, str]:
    """Return whether the node's Python is new enough for the runtime."""
    found = ".".join(str(part) for part in version[:3])
    if version[:2] >= tuple(int(part) for part in oldest.split(".")):
        return check("python", "pass", found)
    return check(
        "python",
        "fail",
        f"found Python {found} ({sys.executable}), expected {oldest} or newer",
        "install a newer one on the node and name it in the variable corebound_python",
    )


def check_prefix(prefix: Path) -> dict[str, str]:
    """Return whether the prefix can be written to, or made."""
    existing = prefix
    while not existing.exists():
        existing = existing.parent
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return check("prefix", "pass", f"{prefix} can be written")
    return check(
        "prefix",
        "fail",
        f"{prefix} cannot be written by this user ({existing} is not a writable folder)",
        "set the variable corebound_prefix to a folder that can, or connect as another user",
    )


def check_disk(prefix: Path, min_free_gib: float) -> dict[str, str]:
    """Return whether there is room for the runtime; an installed one needs no more."""
    existing = prefix
    while not existing.exists():
        existing = existing.parent
    free_gib = shutil.disk_usage(existing).free / GIB
    if free_gib >= min_free_gib or (prefix / "venv").is_dir():
        return check("disk", "pass", f"{free_gib:.1f} GiB free at {existing}")
    return check(
        "disk",
        "fail",
        f"{free_gib:.1f} GiB free at {existing}, expected {min_free_gib:g} GiB",
        "free some, or set the variable corebound_prefix to a folder on a larger disk",
    )


def check_memory(meminfo: str, min_memory_gib: float) -> dict[str, str]:
    """Return whether the machine has the least memory; `meminfo` is the text of /proc/meminfo."""
    total_kib = next((int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemTotal:")), 0)
    total_gib = total_kib / MIB
    if total_gib >= min_memory_gib:
        return check("memory", "pass", f"{total_gib:.1f} GiB")
    return check(
        "memory",
        "fail",
        f"{total_gib:.1f} GiB of memory, expected {min_memory_gib:g} GiB",
        "use a larger machine, or lower the variable host_checks_min_memory_gib for a small model",
    )


def check_shm(shm: Path, min_shm_mib: float) -> dict[str, str]:
    """Return whether ranks on this machine can talk through shared memory; without it they use sockets."""
    size_mib = shutil.disk_usage(shm).total / MIB if shm.is_dir() else 0.0
    if size_mib >= min_shm_mib:
        return check("shared memory", "pass", f"{shm} holds {size_mib:.0f} MiB")
    return check(
        "shared memory",
        "warn",
        f"{shm} holds {size_mib:.0f} MiB, expected {min_shm_mib:g} MiB; ranks will fall back to slower sockets",
        f"mount -o remount,size={min_shm_mib:g}M {shm}",
    )


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prefix", type=Path, required=True)
    parser.add_argument("--min-python", required=True)
    parser.add_argument("--min-free-gib", type=float, required=True)
    parser.add_argument("--min-memory-gib", type=float, required=True)
    parser.add_argument("--min-shm-mib", type=float, required=True)
    options = parser.parse_args()
    checks = [
        check_machine(platform.machine(), platform.system()),
        check_python(sys.version_info[:3], options.min_python),
        check_prefix(options.prefix),
        check_disk(options.prefix, options.min_free_gib),
        check_memory(Path("/proc/meminfo").read_text(encoding="utf-8"), options.min_memory_gib),
        check_shm(Path("/dev/shm"), options.min_shm_mib),  # noqa: S108 - it is what is checked, nothing is put there
    ]
    print(json.dumps({"checks": checks}))


if __name__ == "__main__":
    main()
