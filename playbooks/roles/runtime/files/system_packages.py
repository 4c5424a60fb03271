"""Finds the system packages that are missing and installs them where that is allowed without a question.

Needs nothing but Python, so that `make setup` runs it on this machine and the runtime role on every node. Standard
output is one JSON line: {"changed": bool, "installed": [...], "without": [...], "command": "..."}; `without` are the
packages that only make things better and could not be installed, `command` would install them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

EXIT_MISSING = 2
# Programs whose Debian package has another name, and programs that can be done without.
PACKAGE_OF = {
    "mpiexec.mpich": "mpich",
    "mpirun.openmpi": "openmpi-bin",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
}
OPTIONAL = {"numactl": "memory is then not bound to NUMA nodes"}


def missing_packages(programs: Sequence[str], which: Callable[[str], str | None] = shutil.which) -> list[str]:
    """Return the Debian packages of the programs that are not on the path."""
    return [PACKAGE_OF.get(program, program) for program in programs if which(program) is None]


def venv_package() -> list[str]:
    """Return the Debian package that this Python lacks to make virtual environments, if it does."""
    probe = subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True, check=False)
    return [] if probe.returncode == 0 else [f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"]


def headers_package() -> list[str]:
    """Return the Debian package with the headers of this Python, if they are not there."""
    if (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return []
    return [f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"]


def root_words() -> list[str] | None:
    """Return the words that make a command run as root: none for root, sudo when it asks no password, else None."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    asked = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
    return ["sudo", "-n"] if asked.returncode == 0 else None


def apt_install(packages: Sequence[str], words: Sequence[str]) -> bool:
    """Install with apt-get and return whether that worked; apt's own words go to standard error when not."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = [*words, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"]
    for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            [*apt, *step], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, check=False
        )
        if done.returncode == 0:
            continue
        sys.stderr.write(done.stdout + done.stderr)
        if step != ["update"]:
            return False
        print("apt-get update failed (above); trying with the package lists that are there", file=sys.stderr)
    return True


def command_for(packages: Sequence[str]) -> str:
    """Return the command that installs `packages`, to be run as root."""
    return f"apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)}"


def install(packages: Sequence[str]) -> dict[str, object]:
    """Install what is missing, or say what could not be.

    Raises: SystemExit when something that cannot be done without is missing and may not be installed.
    """
    answer: dict[str, object] = {"changed": False, "installed": [], "without": [], "command": ""}
    if not packages:
        return answer
    needed = [package for package in packages if package not in OPTIONAL]
    words = root_words()
    if words is None:
        why = "this user is not root and has no passwordless sudo"
    elif shutil.which("apt-get") is None:
        why = "there is no apt-get on this machine"
    else:
        print(f"installing system packages: {' '.join(packages)}", file=sys.stderr)
        if apt_install(packages, words):
            return {**answer, "changed": True, "installed": list(packages)}
        why = "apt-get could not install them"
    if needed:
        print(f"error: missing system packages: {' '.join(packages)}; {why}", file=sys.stderr)
        print(f"\nhint: run as root: {command_for(packages)}", file=sys.stderr)
        sys.exit(EXIT_MISSING)
    for package in packages:
        print(f"going on without {package}: {OPTIONAL[package]} ({why})", file=sys.stderr)
    print(f"to add it, run as root: {command_for(packages)}", file=sys.stderr)
    return {**answer, "without": list(packages), "command": command_for(packages)}


def main() -> None:
    """Install what is missing of the programs named, and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("programs", nargs="*", help="programs that must be on the path, such as g++")
    parser.add_argument("--headers", action="store_true", help="the headers of this Python too, to compile modules")
    options = parser.parse_args()
    headers = headers_package() if options.headers else []
    print(json.dumps(install(venv_package() + headers + missing_packages(options.programs))))


if __name__ == "__main__":
    main()
