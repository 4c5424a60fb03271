"""Looks whether a machine is one that a bundle was made for, and prints what it found, as probe.py does.

Runs on the node with nothing but Python, and writes nothing. Its argument is the `platform` of the bundle's manifest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys


def this_platform() -> dict[str, str]:
    """Return what decides which wheels run here; glibc is empty where the C library is another one."""
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    except (ValueError, OSError):
        glibc = ""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "glibc": glibc,
    }


def at_least(found: str, oldest: str) -> bool:
    """Return whether a version such as 2.36 is not older than another; none at all is."""
    if not found:
        return False
    return [int(part) for part in found.split(".")] >= [int(part) for part in oldest.split(".")]


def check_bundle(wanted: dict[str, str], found: dict[str, str], *, has_venv: bool) -> dict[str, str]:
    """Return the line of the report; it names every difference."""
    differing = [
        f"{key}: expected {wanted[key]}, found {found[key]}"
        for key in ("system", "machine", "python")
        if found[key] != wanted[key]
    ]
    if not at_least(found["glibc"], wanted["min_glibc"]):
        differing.append(f"glibc: expected {wanted['min_glibc']} or newer, found {found['glibc'] or 'none'}")
    hint = "make a bundle on a machine like this one, or name a fitting Python in the variable corebound_python"
    if not has_venv:
        differing.append(f"Python's module venv: expected, found none beside {sys.executable}")
        hint = "a bundle holds no system packages: install the one that has this module (Debian: libpython3-stdlib)"
    if differing:
        return {"name": "bundle", "status": "fail", "detail": "; ".join(differing), "hint": hint}
    detail = f"Python {found['python']} on {found['machine']} with glibc {found['glibc']}, as the bundle was made for"
    return {"name": "bundle", "status": "pass", "detail": detail, "hint": ""}


def main() -> None:
    """Print the report."""
    has_venv = importlib.util.find_spec("venv") is not None
    print(json.dumps({"checks": [check_bundle(json.loads(sys.argv[1]), this_platform(), has_venv=has_venv)]}))


if __name__ == "__main__":
    main()
