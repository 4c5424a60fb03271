"""Maps whole files as the memory from which they are used: pages of the page cache, in huge ones where it has them."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from corebound.errors import ModelLoadError
from corebound.sharding.reading import Meter, Progress, Scratch
from corebound.sharding.workers import Part, run_parts

_POPULATE_READ = 22  # MADV_POPULATE_READ, since Linux 5.14
_CHUNK_BYTES = 32 << 20


def map_file(path: Path, descriptor: int, num_bytes: int, progress: Progress | None, num_threads: int) -> torch.Tensor:
    """Return the `num_bytes` of an open file, uint8, mapped and read; `num_threads` threads wait for the disk.

    It shares the memory of the page cache, so that several processes and later launches hold a file once. What is
    written to the tensor stays its own. The file may be removed or replaced by another, but whoever changes or shortens
    it changes the tensor, or ends the process.

    `path` is what errors name.

    Shapes: result [num_bytes].

    Raises: ModelLoadError for a file that has another size or cannot be read.
    """
    found = os.fstat(descriptor).st_size
    if found != num_bytes:
        raise ModelLoadError(f"{path}: changed while it was read: expected {num_bytes} bytes, found {found}")
    try:
        mapping = mmap.mmap(descriptor, num_bytes, flags=mmap.MAP_PRIVATE)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be mapped: {error.strerror or error}") from error
    meter = Meter(num_bytes, progress)
    content = torch.frombuffer(mapping, dtype=torch.uint8)
    # Where file systems have huge pages, what is not in the cache yet is read into such.
    _advise(content, mmap.MADV_HUGEPAGE)

    def parts() -> Iterator[Part]:
        for start in range(0, num_bytes, _CHUNK_BYTES):
            yield functools.partial(_populate, path, content[start : start + _CHUNK_BYTES], meter)

    run_parts(parts(), num_threads)
    return content


def huge_bytes(content: torch.Tensor) -> int:
    """Return how many bytes of a mapped file, a tensor of any shape, this process reaches through huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            start, end = (int(address, 16) for address in name.split("-"))
            inside = start <= content.data_ptr() < end
        elif inside and name == "FilePmdMapped:":
            return int(rest.split()[0]) << 10
    return 0


def _populate(path: Path, content: torch.Tensor, meter: Meter, _: Scratch) -> None:
    code = _advise(content, _POPULATE_READ)
    if code == errno.EINVAL:  # an older kernel
        int(content[:: mmap.PAGESIZE].max())
    elif code:
        # EFAULT is what a disk's error or a shorter file becomes.
        what = (
            "cannot be read: the disk failed, or the file was cut short" if code == errno.EFAULT else os.strerror(code)
        )
        raise ModelLoadError(f"{path}: {what}")
    meter.add(content.numel())


def _advise(content: torch.Tensor, advice: int) -> int:
    """Return 0 or the error of madvise; unlike that of the module mmap it lets other threads run."""
    size = ctypes.c_size_t(content.numel())
    return ctypes.get_errno() if _libc().madvise(ctypes.c_void_p(content.data_ptr()), size, advice) else 0


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
