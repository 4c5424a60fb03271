"""Builds the wheel that nodes install, and dist/wheel.json and dist/requirements-*.txt that say what goes with it.

Nothing is built when the sources are those of the wheel that is there, so that deploying twice changes nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
NATIVE_LIBRARIES = {"corebound/lib/libcorebound.so", "corebound/lib/libcorebound_torch.so"}
# The groups of pyproject.toml whose packages end up on nodes, each by the role of that name.
NODE_GROUPS = ("runtime", "intel_mpi")
# Anything fixed will do: it keeps timestamps out of the wheel, so equal sources give equal bytes.
SOURCE_DATE_EPOCH = "1577836800"


def source_files(runtime: Path) -> Iterator[Path]:
    """Yield every file that decides what is in the wheel, sorted."""
    yield runtime / "pyproject.toml"
    for folder in ("corebound", "csrc"):
        for path in sorted((runtime / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.parent != runtime / "corebound/lib":
                yield path


def fingerprint(runtime: Path) -> str:
    """Return a hash over names and contents of the sources and over this Python."""
    digest = hashlib.sha256(sys.version.encode())
    for path in source_files(runtime):
        digest.update(f"\0{path.relative_to(runtime)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(
    runtime: Path, dist: Path, *, settings: Sequence[str] = (), expected: Set[str] = frozenset(NATIVE_LIBRARIES)
) -> Path:
    """Build the wheel into `dist` and return its path; the compiler's words are shown only when it fails.

    `settings` are scikit-build-core's, as name=value; `expected` are files that the wheel must have.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(dist)]
    command += [word for setting in settings for word in ("--config-settings", setting)]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH, "PATH": tools}
    done = subprocess.run(
        [*command, str(runtime)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        sys.exit("error: the wheel does not build; the compiler's words are above")
    wheels = sorted(dist.glob("corebound-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"error: expected one wheel in {dist}, found {[path.name for path in wheels]}")
    missing = expected - set(zipfile.ZipFile(wheels[0]).namelist())
    if missing:
        sys.exit(f"error: {wheels[0].name} lacks {', '.join(sorted(missing))}")
    return wheels[0]


def main() -> None:
    """Build what is missing and say what is there."""
    DIST.mkdir(exist_ok=True)
    with (DIST / ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (ROOT / "pyproject.toml").open("rb") as file:
            project = tomllib.load(file)
        for group in NODE_GROUPS:
            requirements = "".join(f"{line}\n" for line in sorted(project["dependency-groups"][group]))
            (DIST / f"requirements-{group}.txt").write_text(requirements, encoding="utf-8")
        sources = fingerprint(ROOT / "runtime")
        record = DIST / "wheel.json"
        known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        if known.get("sources") == sources and (DIST / known["wheel"]).is_file():
            print(f"wheel: {known['wheel']} is up to date", file=sys.stderr)
            wheel = DIST / known["wheel"]
        else:
            print("wheel: compiling (about a minute)", file=sys.stderr)
            for old in DIST.glob("corebound-*.whl"):
                old.unlink()
            wheel = build(ROOT / "runtime", DIST)
            print(f"wheel: {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
        found = {
            "wheel": wheel.name,
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "sources": sources,
            **project["tool"]["corebound"],
        }
        record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
