"""Drops files from the page cache and looks what of them is still there."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from corebound.errors import HostError

_MAP_FAILED = ctypes.c_void_p(-1).value
# Pages that were read ahead, or are still in use, may stay; more than this is not a cold file.
_COLD_SHARE = 0.01


def drop_from_page_cache(files: Iterable[Path]) -> None:
    """Drop files from the page cache, so that the next to read them reads the disk; needs no privilege.

    A file system in memory keeps them all the same: `cached_share` says so.

    Raises: HostError for a file that cannot be opened or written back.
    """
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)  # pages that are not on the disk yet would stay
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise HostError(f"{path}: cannot be dropped from the page cache: {error.strerror or error}") from error


def cached_share(files: Iterable[Path]) -> float | None:
    """Return the share of the files' pages that are in memory, or None where one is neither ours nor ours to write.

    The kernel calls every page of such a file present.

    Raises: HostError for a file that cannot be opened or mapped.
    """
    num_pages = num_cached = 0
    for path in files:
        try:
            if path.stat().st_uid != os.geteuid() and not os.access(path, os.W_OK):
                return None
            pages = _pages_in_memory(path)
        except OSError as error:
            raise HostError(f"{path}: cannot be looked for in the page cache: {error.strerror or error}") from error
        num_pages += len(pages)
        num_cached += sum(page & 1 for page in pages)
    return num_cached / num_pages if num_pages else 0.0


def where(share: float | None) -> str:
    """Return where files lie of which that share is in memory after they were dropped, in words."""
    if share is None:
        return "dropped, not checked"
    return "on the disk" if share <= _COLD_SHARE else f"{share:.0%} still in memory"


def _pages_in_memory(path: Path) -> bytes:
    """Return a byte for each page of a file, whose lowest bit is set where the page is in memory."""
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        return b""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    with path.open("rb") as stream:
        # Python's own map of a file that may not be written does not tell its address.
        address = libc.mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, stream.fileno(), 0)
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        found = ctypes.create_string_buffer(-(-num_bytes // mmap.PAGESIZE))
        if libc.mincore(address, num_bytes, found) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return found.raw
    finally:
        libc.munmap(address, num_bytes)
