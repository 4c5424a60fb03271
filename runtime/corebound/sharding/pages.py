"""Takes fresh pages from the kernel well before what is read is stored in them."""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import os
from collections.abc import Iterable, Iterator

import torch

from corebound.logs import get_logger
from corebound.sharding.reading import Scratch
from corebound.sharding.workers import Part

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, since Linux 5.14
_PIECE_BYTES = 8 << 20
_NUM_FIRST = 16  # pieces before anything is read
_NUM_AFTER_PART = 2  # gate rows of a matrix come first, and take the pages of as many up rows

_log = get_logger(__name__)


def with_pages_ahead(parts: Iterable[Part], memories: Iterable[torch.Tensor]) -> Iterator[Part]:
    """Yield the parts in their order, and between them parts that take the pages of `memories`, in theirs.

    The kernel zeroes what it gives. Stores past the caches wait for zeros that are still in them, and zeros take the
    place there of what was read. So pages are taken well before they are filled, faster than that goes on, and not all
    at first, since a disk could read meanwhile.

    Shapes: memories [bytes] uint8, each contiguous.
    """
    pieces = itertools.chain.from_iterable(map(_pieces, memories))
    yield from itertools.islice(pieces, _NUM_FIRST)
    for part in parts:
        yield part
        yield from itertools.islice(pieces, _NUM_AFTER_PART)


def _pieces(memory: torch.Tensor) -> Iterator[Part]:
    start, end = memory.data_ptr(), memory.data_ptr() + memory.numel()
    while start < end:
        stop = min(start // _PIECE_BYTES * _PIECE_BYTES + _PIECE_BYTES, end)  # no huge page in two pieces
        yield functools.partial(_take, memory, start // mmap.PAGESIZE * mmap.PAGESIZE, stop)
        start = stop


def _take(_memory: torch.Tensor, start: int, stop: int, _scratch: Scratch) -> None:
    code = _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _POPULATE_WRITE)
    if code:  # the first store takes what an older kernel does not
        _log.debug("pages are taken as they are filled: %s", os.strerror(ctypes.get_errno()))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
