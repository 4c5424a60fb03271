"""One anonymous mapping for a rank's weights, or its cache: in huge pages if it may, first touched by the user."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping

import torch

from corebound.logs import get_logger

_ALIGN_BYTES = 128  # two cache lines: what the adjacent-line prefetcher fetches together
_log = get_logger(__name__)


def allocate(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return uninitialised tensors of one dtype, next to each other in the order of `shapes`.

    No page is touched: the memory comes from the node of the thread that first writes each part. The mapping lives as
    long as any of the tensors.
    """
    starts: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        starts[name] = end
        num_bytes = math.prod(shape) * dtype.itemsize
        end += -(-num_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
    mapping = mmap.mmap(-1, max(end, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _ask_for_huge_pages(mapping)
    arena = torch.frombuffer(mapping, dtype=torch.uint8)
    return {
        name: arena[starts[name] : starts[name] + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for name, shape in shapes.items()
    }


def _ask_for_huge_pages(mapping: mmap.mmap) -> None:
    # A decode step walks through every weight, and the whole cache, once: each page of 4 KiB costs an entry of the TLB.
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        _log.debug("small pages: the kernel refuses huge ones: %s", error)
