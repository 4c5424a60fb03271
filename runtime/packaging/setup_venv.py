"""Prepares this checkout: system packages, a virtual environment and everything pinned that is needed in it.

Started by `make setup` with whatever `python3` the machine has, so only the standard library is used, and the first
check is the version. A second run finds its stamp and changes nothing. With `--bundle` everything comes from a folder
that unpack_bundle.py has verified: no index is asked and no system package is installed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROLE_FILES = ROOT / "playbooks/roles/runtime/files"
OLDEST_PYTHON = (3, 11)
PROGRAMS = ("g++", "git", "make", "numactl")

# What each purpose needs from [dependency-groups] of pyproject.toml. Control runs playbooks; deploying also compiles
# the wheel here, which takes torch, and runs it elsewhere; developing also runs it here.
GROUPS = {
    "control": ("deploy",),
    "deploy": ("build", "deploy"),
    "develop": ("build", "deploy", "runtime", "k8s", "test", "lint"),
}


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


def run(*command: str | Path, **variables: str) -> None:
    """Run a step with its output on standard error; end with its exit code when it fails, its words being above."""
    words = [str(word) for word in command]
    code = subprocess.run(words, stdout=sys.stderr, cwd=ROOT, env={**os.environ, **variables}, check=False).returncode
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
        say("oneCCL (about 500 MB)")
        run(*pip, "--no-deps", "--group", "pyproject.toml:oneccl")
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
    if not (venv / "bin/pip").exists():
        run(python, "-m", "ensurepip", "--upgrade")
    run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", f"pip=={versions['pip']}")
    if "build" not in GROUPS[purpose]:
        install_groups(python, purpose)
        return
    say(f"torch {versions['torch']}, CPU build (about 200 MB)")
    run_quietly(python, ROLE_FILES / "install_torch.py", versions["torch"], *(["--allow-cuda"] if allow_cuda else []))
    install_groups(python, purpose)


def check_bundle_python(bundle: Path) -> None:
    """End with a clear message when the bundle's wheels are for another Python than this one."""
    platform = json.loads((bundle / "MANIFEST.json").read_text(encoding="utf-8"))["platform"]
    found = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if found != platform["python"]:
        sys.exit(
            f"error: the bundle is for Python {platform['python']}, found {found} ({sys.executable})\n\n"
            f"hint: name such a Python: `make deploy BUNDLE=... PYTHON3=python{platform['python']}`, "
            f"or make the bundle with Python {found}"
        )


def fill_from_bundle(venv: Path, bundle: Path) -> None:
    """Create the environment and install what runs playbooks, from the bundle's wheels alone.

    pip itself runs from its wheel, since python3-venv, which would bring one, may be missing.
    """
    check_bundle_python(bundle)
    python, wheels = venv / "bin/python", bundle / "wheels/control"
    if not python.exists():
        say(f"creating {venv}")
        run(sys.executable, "-m", "venv", "--without-pip", venv)
    say(f"pinned packages from {bundle}: {', '.join(GROUPS['control'])}")
    pip = next(wheels.glob("pip-*.whl")) / "pip"
    run(python, pip, "--disable-pip-version-check", "install", "--quiet", f"pip=={pins()['pip']}",
        *(word for group in GROUPS["control"] for word in ("--group", f"pyproject.toml:{group}")),
        PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))  # fmt: skip


def prepare(venv: Path, purpose: str, *, allow_cuda: bool, bundle: Path | None = None) -> None:
    """Bring the environment up to date for `purpose`, unless a stamp says that it is."""
    covering = [name for name in GROUPS if set(GROUPS[purpose]) <= set(GROUPS[name])]
    for name in covering:
        stamp = venv / f".setup-{name}"
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint(name):
            return
    started = time.monotonic()
    if bundle is not None:
        fill_from_bundle(venv, bundle)
    else:
        say(f"system packages for {purpose}")
        # Developing also compiles modules for Python: op builders, in the tests.
        wanted = {"control": (), "deploy": PROGRAMS, "develop": (*PROGRAMS, "--headers")}[purpose]
        run_quietly(sys.executable, ROLE_FILES / "system_packages.py", *wanted)
        fill_environment(venv, purpose, allow_cuda=allow_cuda)
    (venv / f".setup-{purpose}").write_text(fingerprint(purpose), encoding="utf-8")
    say(f"ready in {time.monotonic() - started:.0f} s: {venv}")


def main() -> None:
    """Do what is missing, one process at a time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("purpose", choices=sorted(GROUPS))
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--allow-cuda", action="store_true", help="accept a CUDA build of torch")
    parser.add_argument("--bundle", type=Path, help="folder of an unpacked bundle; for the purpose control only")
    options = parser.parse_args()
    if options.bundle and options.purpose != "control":
        parser.error("--bundle goes with the purpose control: a bundle holds no compiler")
    check_python()
    venv = options.venv.absolute()
    if not os.access(ROOT, os.W_OK):
        sys.exit(
            f"error: {ROOT}: this user cannot write here, and the environment goes below it\n\n"
            "hint: `git clone` into a folder of your own, and run make there"
        )
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build/setup.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        bundle = options.bundle.absolute() if options.bundle else None
        prepare(venv, options.purpose, allow_cuda=options.allow_cuda, bundle=bundle)


if __name__ == "__main__":
    main()
