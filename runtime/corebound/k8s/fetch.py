"""An archive from a URL into a folder; nothing is unpacked before its digest is known to be right."""

from __future__ import annotations

import hashlib
import http.client
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from corebound.config.suggest import require_choice
from corebound.errors import HostError, ModelLoadError

SCHEMES = ("file", "http", "https")
_BLOCK_BYTES = 1 << 20


def fetch_archive(url: str, sha256: str, directory: Path, timeout_s: float) -> int:
    """Unpack the tar file at `url` into a folder and return its size in bytes.

    The archive is kept beside what is unpacked until then, so the folder needs room for both.

    Raises: ConfigError for a URL of another kind; HostError when it cannot be fetched or there is no room;
    ModelLoadError for a wrong digest, or an archive that is damaged or leaves the folder.
    """
    require_choice("scheme", urlsplit(url).scheme, SCHEMES, where=url)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as archive:
            found, num_bytes = _download(url, archive, timeout_s)
            if found != sha256:
                raise ModelLoadError(
                    f"{url}: expected SHA-256 {sha256}, found {found} ({num_bytes} bytes)",
                    hint="the archive is damaged, or another one than the manifest means: compare model.sha256",
                )
            archive.seek(0)
            _unpack(url, archive, directory)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise HostError(
            f"{url}: could not be fetched: {getattr(error, 'reason', None) or error}",
            hint="is the server reachable from this pod, and does the NetworkPolicy of the job let it through?",
        ) from error
    except OSError as error:
        raise HostError(f"{directory}: {error.strerror or error}", hint="is the volume large enough?") from error
    return num_bytes


def _download(url: str, archive: IO[bytes], timeout_s: float) -> tuple[str, int]:
    digest = hashlib.sha256()
    num_bytes = 0
    with urllib.request.urlopen(url, timeout=timeout_s) as response:  # noqa: S310  the scheme is checked
        expected = response.headers.get("Content-Length")
        while block := response.read(_BLOCK_BYTES):
            digest.update(block)
            num_bytes += archive.write(block)
    if expected is not None and num_bytes != int(expected):
        raise ConnectionError(f"the connection ended after {num_bytes} of {expected} bytes")
    return digest.hexdigest(), num_bytes


def _unpack(url: str, archive: IO[bytes], directory: Path) -> None:
    try:
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(directory, filter="data")
    except tarfile.TarError as error:
        raise ModelLoadError(f"{url}: {error}", hint="make it with: tar -C PARENT -cf MODEL.tar MODEL") from error
