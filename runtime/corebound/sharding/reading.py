"""Reading parts of stored tensors with pread, and what that needs: a buffer, a count, an open file."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from corebound.errors import ModelLoadError
from corebound.sharding.checkpoint import TensorEntry

Progress = Callable[[int, int], None]

CHUNK_BYTES = 1 << 20  # stays in the second-level cache, where the check of the values finds it again


class Meter:
    """Counts bytes that were read, of `num_bytes` that will be, and tells `progress`, one thread at a time."""

    def __init__(self, num_bytes: int, progress: Progress | None) -> None:
        self.num_bytes, self.num_done = num_bytes, 0
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Count bytes."""
        with self._lock:
            self.num_done += num_bytes
            if self._progress is not None:
                self._progress(self.num_done, self.num_bytes)


class Scratch:
    """One buffer for all that is read and converted.

    malloc would take a new one for each tensor from its heap after the first, leave gaps between them and never give
    them back: 4 to 16 MiB of the rank's memory.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def tensor(self, num_rows: int, num_columns: int, dtype: torch.dtype) -> torch.Tensor:
        """Return rows and columns of the buffer, [num_rows, num_columns], valid until the next call."""
        return self.buffer(num_rows * num_columns * dtype.itemsize).view(dtype).view(num_rows, num_columns)

    def buffer(self, num_bytes: int) -> torch.Tensor:
        """Return bytes of the buffer, [num_bytes], valid until the next call."""
        if self._bytes.numel() < num_bytes:
            self._bytes = torch.frombuffer(mmap.mmap(-1, max(num_bytes, CHUNK_BYTES)), dtype=torch.uint8)
        return self._bytes[:num_bytes]


def read_rectangle(descriptor: int, entry: TensorEntry, target: torch.Tensor, first_row: int, columns: range) -> None:
    """Fill `target` from the rows of a stored tensor from `first_row` on and from its `columns`.

    Shapes: target [rows, columns], contiguous, in the stored type; a stored vector has one column.

    Raises: ModelLoadError naming file and tensor.
    """
    width = entry.shape[1] if len(entry.shape) > 1 else 1
    view = target.view(-1).view(torch.uint8).numpy().data
    offset = entry.start + (first_row * width + columns.start) * entry.item_bytes
    if len(columns) == width:
        read_span(descriptor, entry, view, offset)
        return
    part_bytes = len(columns) * entry.item_bytes
    for row in range(target.shape[0]):
        start = offset + row * width * entry.item_bytes
        read_span(descriptor, entry, view[row * part_bytes : (row + 1) * part_bytes], start)


def read_span(descriptor: int, entry: TensorEntry, view: memoryview, offset: int) -> None:
    """Fill `view` from byte `offset` of a file on.

    Raises: ModelLoadError naming the file and the tensor that the bytes are of.
    """
    while view:
        try:
            count = os.preadv(descriptor, [view], offset)
        except OSError as error:
            raise damaged(entry, f"cannot be read: {error.strerror or error}") from error
        if count == 0:
            raise damaged(entry, f"the file ends at byte {offset}, before the tensor does")
        view, offset = view[count:], offset + count


def damaged(entry: TensorEntry, what: str) -> ModelLoadError:
    """Return the error for a tensor whose bytes are wrong or missing."""
    return ModelLoadError(
        f"{entry.path}: tensor {entry.name!r}: {what}",
        hint="the file is damaged or changed while it was read: fetch it again",
    )


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Enter with a descriptor of the file, for reading.

    Raises: ModelLoadError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
