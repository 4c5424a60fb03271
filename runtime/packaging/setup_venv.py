"""Prepares this checkout: system packages, a virtual environment and everything pinned that is needed in it.

Started by `make setup` with whatever `python3` the machine has, so only the standard library is used, and the first
check is the version. A second run finds its stamp and changes nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSTALL_TORCH = ROOT / "playbooks/roles/runtime/files/install_torch.py"
OLDEST_PYTHON = (3, 11)
TORCH_VERSION = "2.13.0"
PIP_VERSION = "26.3"

# What each purpose needs from [dependency-groups] of pyproject.toml. Deploying compiles the wheel here and runs it
# elsewhere; developing also runs it here.
GROUPS = {"deploy": ("build", "deploy"), "develop": ("build", "deploy", "runtime", "test", "lint")}


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def fail(message: str, hint: str) -> None:
    """End with an error and the next step."""
    sys.exit(f"error: {message}\n\nhint: {hint}")


def check_python() -> None:
    """End with a clear message when this Python is too old."""
    if sys.version_info < OLDEST_PYTHON:
        found = f"{sys.version.split()[0]} ({sys.executable})"
        fail(
            f"Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer is needed, found {found}",
            "install a newer one and name it: `make setup PYTHON3=python3.12`",
        )


def missing_packages() -> tuple[list[str], list[str]]:
    """Return the Debian packages without which nothing works, and those that only make it better."""
    needed = []
    probe = subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True, check=False)
    if probe.returncode != 0:
        needed.append(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")
    for program, package in (("g++", "g++"), ("make", "make"), ("git", "git")):
        if shutil.which(program) is None:
            needed.append(package)
    return needed, [] if shutil.which("numactl") else ["numactl"]


def root_prefix() -> list[str] | None:
    """Return the words that make a command run as root: none for root, sudo when it asks no password, else None."""
    if os.geteuid() == 0:
        return []
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ["sudo", "-n"]
    return None


def install_system_packages() -> None:
    """Install missing system packages where that is allowed, or say the command that would."""
    needed, wished = missing_packages()
    wanted = needed + wished
    if not wanted:
        say("system packages: all there")
        return
    command = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(wanted)}"
    prefix = root_prefix()
    if prefix is None or shutil.which("apt-get") is None:
        why = "this user is not root and has no passwordless sudo" if prefix is None else "there is no apt-get here"
        if needed:
            fail(f"missing system packages: {' '.join(needed)}; {why}", f"run as root: {command}")
        say(f"going on without {' '.join(wished)}: memory is then not bound to NUMA nodes")
        say(f"to add it, run as root: {command}")
        return
    say(f"installing system packages: {' '.join(wanted)}")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = [*prefix, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"]
    for words in (["update"], ["install", "-y", "--no-install-recommends", *wanted]):
        done = subprocess.run(
            [*apt, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, check=False
        )
        if done.returncode != 0:
            sys.stderr.write(done.stdout + done.stderr)
            if words == ["update"]:
                say("apt-get update failed (above); trying with the package lists that are there")
            elif needed:
                fail(f"apt-get could not install {' '.join(wanted)}", "its own words are above")
            else:
                say(f"going on without {' '.join(wished)}")


def fingerprint(purpose: str) -> str:
    """Return a hash over everything that decides what the environment holds."""
    digest = hashlib.sha256(f"{purpose} {sys.version} {sys.base_prefix}".encode())
    for path in (ROOT / "pyproject.toml", ROOT / "runtime/pyproject.toml", INSTALL_TORCH, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run_pip(python: Path, *arguments: str) -> None:
    """Run pip in the environment: with its progress bars on a terminal, quiet elsewhere."""
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments[:1], *quiet, *arguments[1:]]
    if subprocess.run(command, stdout=sys.stderr, cwd=ROOT, check=False).returncode != 0:
        fail(
            f"pip failed: {' '.join(command)}",
            "its own words are above; a second `make setup` goes on where this one stopped",
        )


def fill_environment(venv: Path, purpose: str, *, allow_cuda: bool) -> None:
    """Create the environment and install torch, the pinned groups and, for developing, this checkout itself."""
    python = venv / "bin/python"
    if not python.exists():
        say(f"creating {venv}")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    say(f"pip {PIP_VERSION}")
    run_pip(python, "install", f"pip=={PIP_VERSION}")
    say(f"torch {TORCH_VERSION}, CPU build (about 200 MB)")
    words = [str(python), str(INSTALL_TORCH), TORCH_VERSION, *(["--allow-cuda"] if allow_cuda else [])]
    code = subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        sys.exit(code)
    say(f"pinned packages: {', '.join(GROUPS[purpose])}")
    run_pip(python, "install", *(word for group in GROUPS[purpose] for word in ("--group", f"pyproject.toml:{group}")))
    if purpose == "develop":
        say("corebound, from this checkout")
        editable = ("--no-deps", "--no-build-isolation", "-C", "editable.mode=inplace", "-C", "wheel.cmake=false")
        run_pip(python, "install", *editable, "--editable", "./runtime")


def main() -> None:
    """Do the steps that the stamp does not already cover."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("purpose", choices=sorted(GROUPS))
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--allow-cuda", action="store_true", help="accept a CUDA build of torch")
    options = parser.parse_args()
    check_python()
    venv = options.venv.absolute()
    venv.parent.mkdir(parents=True, exist_ok=True)
    with (venv.parent / f".{venv.name.lstrip('.')}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare(venv, options.purpose, allow_cuda=options.allow_cuda)


def prepare(venv: Path, purpose: str, *, allow_cuda: bool) -> None:
    """Bring the environment up to date for `purpose`, unless its stamp says that it is."""
    # Whatever develops also deploys.
    purposes = [name for name in GROUPS if set(GROUPS[purpose]) <= set(GROUPS[name])]
    stamps = {name: venv / f".setup-{name}" for name in purposes}
    for name, stamp in stamps.items():
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint(name):
            return
    started = time.monotonic()
    install_system_packages()
    fill_environment(venv, purpose, allow_cuda=allow_cuda)
    stamps[purpose].write_text(fingerprint(purpose), encoding="utf-8")
    say(f"ready in {time.monotonic() - started:.0f} s: {venv}")


if __name__ == "__main__":
    main()
