"""Verifies a bundle of `make bundle` and unpacks it; a bundle with one wrong byte is refused before a file is written.

Started by `make deploy BUNDLE=file` with whatever `python3` the machine has, so only the standard library is used. What
is there already with the right SHA-256 is not written again, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1
MANIFEST, CHECKSUM = "MANIFEST.json", "MANIFEST.json.sha256"
LARGEST_MANIFEST_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20
EXIT_CONFIGURATION = 2
UNCHANGED = "no machine was changed"


class BundleError(Exception):
    """The bundle cannot be used; the text says what was expected and found, one line for each problem."""


def refuse(archive: Path, error: object, hint: str) -> NoReturn:
    """End with the message of a bundle that cannot be used."""
    print(f"error: {archive}: {error}\n\nhint: {hint}", file=sys.stderr)
    sys.exit(EXIT_CONFIGURATION)


def small_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the next member, which must be the one of that name.

    Raises: BundleError when it is another one.
    """
    entry = archive.next()
    found = entry.name if entry else "the end"
    if entry is None or entry.name != name or not entry.isreg() or entry.size > LARGEST_MANIFEST_BYTES:
        raise BundleError(f"expected {name}, found {found}: this is not a bundle")
    file = archive.extractfile(entry)
    return file.read() if file else b""


def read_manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    """Return the manifest at the beginning of the archive, checked against its own checksum.

    Raises: BundleError naming what differs.
    """
    text = small_member(archive, MANIFEST)
    expected = small_member(archive, CHECKSUM).decode("ascii", "replace").partition(" ")[0]
    found = hashlib.sha256(text).hexdigest()
    if found != expected:
        raise BundleError(f"{MANIFEST}: expected SHA-256 {expected}, found {found}")
    manifest: dict[str, Any] = json.loads(text)
    if manifest.get("format") != FORMAT:
        raise BundleError(f"{MANIFEST}: format: expected {FORMAT}, found {manifest.get('format')}")
    for name in manifest["files"]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or name in {MANIFEST, CHECKSUM}:
            raise BundleError(f"{MANIFEST}: {name}: expected the path of a file below the bundle")
    return manifest


def members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Yield each further member with its contents.

    Raises: BundleError when one is not a plain file.
    """
    for entry in iter(archive.next, None):
        file = archive.extractfile(entry) if entry.isreg() else None
        if file is None:
            raise BundleError(f"{entry.name}: expected a plain file, found another kind")
        yield entry, file


def copy(source: IO[bytes], write: Callable[[bytes], object]) -> str:
    """Pass a file on in blocks and return its SHA-256."""
    digest = hashlib.sha256()
    while block := source.read(BLOCK_BYTES):
        digest.update(block)
        write(block)
    return digest.hexdigest()


def hash_of(path: Path) -> str | None:
    """Return the SHA-256 of a file, None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return copy(file, lambda block: None)


def verify(archive: tarfile.TarFile, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Read everything once.

    Raises: BundleError with a line for each file that differs, is missing or is one too many.
    """
    problems, seen = [], set()
    for entry, file in members(archive):
        if entry.name in seen or entry.name not in wanted:
            problems.append(f"{entry.name}: expected once and in {MANIFEST}, found otherwise")
            continue
        seen.add(entry.name)
        expected, found = wanted[entry.name]["sha256"], copy(file, lambda block: None)
        if found != expected:
            problems.append(f"{entry.name}: expected SHA-256 {expected}, found {found}")
    problems += [f"{name}: expected in the bundle, found nothing" for name in wanted if name not in seen]
    if problems:
        raise BundleError("\n".join(problems))


def unpack(archive: tarfile.TarFile, wanted: Mapping[str, Mapping[str, Any]], target: Path) -> int:
    """Write the files that are missing or differ, each under its name only when whole; return how many those were."""
    num_written = 0
    for entry, file in members(archive):
        path, expected = target / entry.name, wanted[entry.name]["sha256"]
        if hash_of(path) == expected:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as out:
            found = copy(file, out.write)
        if found != expected:
            raise BundleError(f"{entry.name}: expected SHA-256 {expected}, found {found}; it changed while being read")
        part.replace(path)
        num_written += 1
    return num_written


def remove_others(target: Path, wanted: Mapping[str, object]) -> None:
    """Remove what an earlier bundle left, so that pip finds the wheels of this one only."""
    for path in sorted(target.rglob("*"), reverse=True):
        name = str(path.relative_to(target))
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in wanted and name not in {MANIFEST, CHECKSUM}:
            path.unlink()


def note_other_commit(manifest: Mapping[str, Any]) -> None:
    """Say so when the playbooks of this checkout are of another commit than the bundle; Git need not be there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return
    here, there = done.stdout.strip(), manifest["source"]["commit"]
    if done.returncode == 0 and there and here != there:
        print(f"bundle: made from commit {there[:12]}, this checkout is at {here[:12]}", file=sys.stderr)


def install(path: Path, target: Path) -> dict[str, Any]:
    """Verify the bundle, then make `target` hold it and nothing else; return its manifest.

    Raises: BundleError, tarfile.TarError, OSError, ValueError or KeyError when it cannot be used.
    """
    with tarfile.open(path, "r:") as archive:
        manifest = read_manifest(archive)
        verify(archive, manifest["files"])
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "r:") as archive:
        texts = {name: small_member(archive, name) for name in (MANIFEST, CHECKSUM)}
        remove_others(target, manifest["files"])
        num_written = unpack(archive, manifest["files"], target)
    for name, text in texts.items():
        (target / name).write_bytes(text)
    num_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    words = f"{len(manifest['files'])} files, {num_bytes / 1e6:.0f} MB verified, {num_written} written to {target}"
    print(f"bundle: corebound {manifest['version']}: {words}", file=sys.stderr)
    return manifest


def main() -> None:
    """Verify and unpack, one process at a time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="the file that `make bundle` wrote")
    parser.add_argument("--target", type=Path, default=ROOT / "build/bundle", help="default: build/bundle")
    options = parser.parse_args()
    options.target.parent.mkdir(parents=True, exist_ok=True)
    with options.target.with_name(f".{options.target.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            note_other_commit(install(options.bundle, options.target))
        except FileNotFoundError:
            refuse(options.bundle, "expected a bundle, found no file", "make one where there is an index: make bundle")
        except (BundleError, tarfile.TarError) as error:
            refuse(options.bundle, error, f"{UNCHANGED}; copy the bundle again, or make it again: make bundle")
        except (KeyError, ValueError) as error:
            refuse(options.bundle, f"{MANIFEST}: {error!r}", f"{UNCHANGED}; make the bundle again: make bundle")
        except OSError as error:
            refuse(options.bundle, f"{error.filename or options.target}: {os.strerror(error.errno or 0)}", UNCHANGED)


if __name__ == "__main__":
    main()
