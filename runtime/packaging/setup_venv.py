"""Prepares this checkout: system packages, a virtual environment and everything pinned that is needed in it.

Started by `make setup` with whatever `python3` the machine has, so only the standard library is used, and the first
check is the version. A second run finds its stamp and changes nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROLE_FILES = ROOT / "playbooks/roles/runtime/files"
OLDEST_PYTHON = (3, 11)
PROGRAMS = ("g++", "git", "make", "numactl")

# What each purpose needs from [dependency-groups] of pyproject.toml. Deploying compiles the wheel here and runs it
# elsewhere; developing also runs it here.
GROUPS = {"deploy": ("build", "deploy"), "develop": ("build", "deploy", "runtime", "k8s", "test", "lint")}


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def check_python() -> None:
    """End with a clear message when this Python is too old."""
    if sys.version_info < OLDEST_PYTHON:
        found = f"{sys.version.split()[0]} ({sys.executable})"
        sys.exit(
            f"error: Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer is needed, found {found}\n\n"
            "hint: install a newer one and name it: `make setup PYTHON3=python3.12`"
        )


def pins() -> dict[str, str]:
    """Return the versions of pip and torch from pyproject.toml."""
    import tomllib  # the check above comes first: older Pythons have no tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["tool"]["corebound"])


def fingerprint(purpose: str) -> str:
    """Return a hash over everything that decides what the environment holds."""
    digest = hashlib.sha256(f"{purpose} {sys.version} {sys.base_prefix}".encode())
    for path in (ROOT / "pyproject.toml", ROOT / "runtime/pyproject.toml", *sorted(ROLE_FILES.glob("*.py"))):
        digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def run(*command: str | Path) -> None:
    """Run a step with its output on standard error; end with its exit code when it fails, its words being above."""
    code = subprocess.run([str(word) for word in command], stdout=sys.stderr, cwd=ROOT, check=False).returncode
    if code != 0:
        say(f"stopped at: {' '.join(str(word) for word in command)}")
        sys.exit(code)


def run_quietly(*command: str | Path) -> None:
    """Run one of the role's scripts, whose standard output is for Ansible."""
    code = subprocess.run([str(word) for word in command], stdout=subprocess.DEVNULL, cwd=ROOT, check=False).returncode
    if code != 0:
        sys.exit(code)


def install_groups(python: Path, purpose: str) -> None:
    """Install what the purpose needs into the environment of `python`: with progress bars on a terminal only."""
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install", *quiet]
    say(f"pinned packages: {', '.join(GROUPS[purpose])}")
    run(*pip, *(word for group in GROUPS[purpose] for word in ("--group", f"pyproject.toml:{group}")))
    if purpose == "develop":
        say("corebound, from this checkout")
        # Python only: the native libraries are built by `make native`, into the same checkout.
        run(*pip, "--no-deps", "--no-build-isolation", "-C", "editable.mode=inplace", "-C", "wheel.cmake=false",
            "--editable", "./runtime")  # fmt: skip


def fill_environment(venv: Path, purpose: str, *, allow_cuda: bool) -> None:
    """Create the environment and install pip, torch and the pinned groups."""
    python = venv / "bin/python"
    if not python.exists():
        say(f"creating {venv}")
        run(sys.executable, "-m", "venv", venv)
    versions = pins()
    say(f"pip {versions['pip']}")
    run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", f"pip=={versions['pip']}")
    say(f"torch {versions['torch']}, CPU build (about 200 MB)")
    run_quietly(python, ROLE_FILES / "install_torch.py", versions["torch"], *(["--allow-cuda"] if allow_cuda else []))
    install_groups(python, purpose)


def prepare(venv: Path, purpose: str, *, allow_cuda: bool) -> None:
    """Bring the environment up to date for `purpose`, unless a stamp says that it is."""
    covering = [name for name in GROUPS if set(GROUPS[purpose]) <= set(GROUPS[name])]
    for name in covering:
        stamp = venv / f".setup-{name}"
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint(name):
            return
    started = time.monotonic()
    say(f"system packages for {purpose}")
    run_quietly(sys.executable, ROLE_FILES / "system_packages.py", *PROGRAMS)
    fill_environment(venv, purpose, allow_cuda=allow_cuda)
    (venv / f".setup-{purpose}").write_text(fingerprint(purpose), encoding="utf-8")
    say(f"ready in {time.monotonic() - started:.0f} s: {venv}")


def main() -> None:
    """Do what is missing, one process at a time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("purpose", choices=sorted(GROUPS))
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--allow-cuda", action="store_true", help="accept a CUDA build of torch")
    options = parser.parse_args()
    check_python()
    venv = options.venv.absolute()
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build/setup.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare(venv, options.purpose, allow_cuda=options.allow_cuda)


if __name__ == "__main__":
    main()
