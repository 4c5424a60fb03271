"""Digests of a model's files: the one way to notice a flipped bit that still makes a plausible weight."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from corebound.errors import ModelLoadError
from corebound.logs import get_logger
from corebound.models.config_reader import read_json_object

MANIFEST_FILE = "corebound-manifest.json"
# What `corebound shard` writes has its digests beside the description of the shards.
SHARDS_FILE = "corebound-shards.json"

_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".txt")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 4 << 20
_GIB = 1 << 30
# Reading a file for its digest takes as long as loading it, so only small models are checked at every launch.
MAX_VERIFIED_BYTES = 1 << 30

Listing = dict[str, tuple[str, int]]
_log = get_logger(__name__)


@dataclass(frozen=True)
class Verification:
    """What verify_manifest did: how many files and bytes it read, and the files that nothing vouches for."""

    num_files: int
    num_bytes: int
    unlisted: tuple[str, ...]


def model_listing(model_dir: Path) -> Listing:
    """Return digest and size of a model's files by name, as the manifest or the hub has them; empty without either.

    Raises: ModelLoadError for a manifest that is damaged.
    """
    return _manifest(model_dir) or _hub_digests(model_dir)


def verify_manifest(
    model_dir: Path,
    *,
    listing: Listing | None = None,
    max_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification | None:
    """Read every listed file of a model once and compare sizes and SHA-256 digests; return what was verified.

    Digests come from the manifest beside the files or, in a cache of the Hugging Face hub, from the names that the
    hub gave its blobs, or are given: `listing` is another host's, whose model this one should be. None means that
    nothing was read: there are no digests, or the listed files have more than `max_bytes` (sizes are compared even
    then). Call it once per host.

    Raises: ModelLoadError naming the file that is missing or differs.
    """
    listed = model_listing(model_dir) if listing is None else listing
    total = sum(num_bytes for _, num_bytes in listed.values())
    for name, (_, num_bytes) in listed.items():
        _check_size(model_dir / name, num_bytes)
    if not listed:
        return None
    if max_bytes is not None and total > max_bytes:
        _log.info(
            "%s: sizes compared, digests not: %.1f GiB take as long to read as to load (up to %.0f GiB are checked)",
            model_dir,
            total / _GIB,
            max_bytes / _GIB,
        )
        return None
    done = 0
    for name, (digest, num_bytes) in listed.items():
        found = file_digest(model_dir / name)
        if found != digest:
            raise ModelLoadError(
                f"{model_dir / name}: damaged: expected SHA-256 {digest}, found {found}", hint="fetch the file again"
            )
        done += num_bytes
        if progress is not None:
            progress(done, total)
    unlisted = tuple(path.name for path in _model_files(model_dir) if path.name not in listed)
    return Verification(len(listed), total, unlisted)


def write_manifest(model_dir: Path) -> Path:
    """Write the manifest of a model directory as it is now, and return its path.

    Raises: ModelLoadError naming the file that cannot be read.
    """
    files = {path.name: {"sha256": file_digest(path), "bytes": path.stat().st_size} for path in _model_files(model_dir)}
    target = model_dir / MANIFEST_FILE
    target.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    return target


def _model_files(model_dir: Path) -> list[Path]:
    return sorted(
        path
        for path in model_dir.iterdir()
        if path.is_file() and path.suffix in _SUFFIXES and path.name not in (MANIFEST_FILE, SHARDS_FILE)
    )


def listed_files(path: Path) -> Listing:
    """Return digest and size of the files that a manifest lists, by name.

    Raises: ModelLoadError.
    """
    files = read_json_object(path).get("files")
    if not isinstance(files, dict) or not files:
        raise ModelLoadError(f"{path}: expected an object `files` with at least one file")
    listed = {}
    for name, fields in files.items():
        digest = fields.get("sha256") if isinstance(fields, dict) else None
        num_bytes = fields.get("bytes") if isinstance(fields, dict) else None
        if Path(name).name != name or type(num_bytes) is not int or not _SHA256.fullmatch(str(digest)):
            raise ModelLoadError(f"{path}: {name!r}: expected a file name with sha256 (64 hex digits) and bytes")
        listed[name] = (str(digest), num_bytes)
    return listed


def _manifest(model_dir: Path) -> Listing:
    for name in (MANIFEST_FILE, SHARDS_FILE):
        if (model_dir / name).exists():
            return listed_files(model_dir / name)
    return {}


def _hub_digests(model_dir: Path) -> Listing:
    # The hub's cache links each large file to a blob whose name is its SHA-256; small ones carry a shorter git hash.
    links = {path.name: path.resolve() for path in _model_files(model_dir) if path.is_symlink()}
    return {
        name: (blob.name, blob.stat().st_size)
        for name, blob in links.items()
        if _SHA256.fullmatch(blob.name) and blob.parent.name == "blobs"
    }


def _check_size(path: Path, num_bytes: int) -> None:
    if not path.is_file():
        raise ModelLoadError(f"{path}: missing, but listed in the manifest", hint="fetch the file again")
    found = path.stat().st_size
    if found != num_bytes:
        raise ModelLoadError(f"{path}: expected {num_bytes} bytes, found {found}", hint="fetch the file again")


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal.

    Raises: ModelLoadError.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
