"""Tensors of a checkpoint: whole in one file, or in parts that ranks wrote; read range by range either way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from corebound.errors import ModelLoadError
from corebound.sharding.checkpoint import TensorEntry
from corebound.sharding.reading import CHUNK_BYTES, Meter, Scratch, opened, read_rectangle

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: bytes of a safetensors file, or a loaded tensor. `ranges` are in the split dimension."""

    content: TensorEntry | Tensor
    ranges: tuple[range, ...]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor by its name, split along `dim` into pieces; a tensor in one piece has all of it."""

    name: str
    shape: tuple[int, ...]
    dim: int
    pieces: tuple[Piece, ...]

    @classmethod
    def whole(cls, name: str, content: TensorEntry | Tensor) -> StoredTensor:
        """Return a tensor, of any shape, that is in one piece."""
        shape = tuple(content.shape)
        return cls(name=name, shape=shape, dim=0, pieces=(Piece(content, (range(shape[0]) if shape else range(1),)),))

    @property
    def entry(self) -> TensorEntry | None:
        """The place in a safetensors file that has the whole tensor, None where there is no such one."""
        content = self.pieces[0].content
        return content if len(self.pieces) == 1 and isinstance(content, TensorEntry) else None

    def read(
        self,
        dim: int = 0,
        ranges: Sequence[range] | None = None,
        *,
        dtype: torch.dtype | None = None,
        meter: Meter | None = None,
    ) -> Tensor:
        """Return the ranges of a dimension, one after the other; None takes the whole tensor.

        Floats are converted to `dtype` while they are read, so that beside the result there is one small buffer.
        `meter` is told of the bytes.

        Shapes: as the tensor, but `dim` has the length of the ranges.
        Raises: ModelLoadError naming file and tensor.
        """
        wanted = (range(self.shape[dim] if self.shape else 1),) if ranges is None else tuple(ranges)
        parts = self._parts(dim, wanted)
        length = sum(len(part) for part in wanted)
        if sum(len(part) for _, part in parts) != length:
            raise ModelLoadError(f"tensor {self.name!r}: no file has all of {list(wanted)} of dimension {dim}")
        stored = _dtype_of(self.pieces[0].content)
        shape = [*self.shape[:dim], length, *self.shape[dim + 1 :]] if self.shape else []
        result = torch.empty(shape, dtype=dtype if dtype is not None and stored.is_floating_point else stored)
        reading = _Reading(dim, result, meter or Meter(0, None), Scratch())
        for content, part in parts:
            reading.take(content, part)
        return result

    def num_bytes(self) -> int:
        """Return how many bytes of files the whole tensor takes."""
        return math.prod(self.shape) * _dtype_of(self.pieces[0].content).itemsize

    def _parts(self, dim: int, wanted: Sequence[range]) -> list[tuple[TensorEntry | Tensor, range]]:
        """Return where the ranges of a dimension are, in order."""
        if len(self.pieces) == 1:
            return [(self.pieces[0].content, part) for part in wanted]
        if dim == self.dim:
            return [found for part in wanted for found in self._across(part)]
        whole = self.read(self.dim)
        return [(whole, part) for part in wanted]

    def _across(self, wanted: range) -> Iterator[tuple[TensorEntry | Tensor, range]]:
        """Yield the pieces that hold a range, and where in each, in order."""
        held = []
        for piece in self.pieces:
            offset = 0
            for part in piece.ranges:
                held.append((part, offset, piece.content))
                offset += len(part)
        position = wanted.start
        for part, offset, content in sorted(held, key=lambda item: (item[0].start, item[0].stop)):
            # Ranks may hold the same rows, such as a kv head that several of them need.
            if part.start <= position < part.stop and position < wanted.stop:
                stop = min(part.stop, wanted.stop)
                start = offset + position - part.start
                yield content, range(start, start + stop - position)
                position = stop


@dataclass
class _Reading:
    """Fills a contiguous tensor with parts of a dimension, one after the other."""

    dim: int
    target: Tensor
    meter: Meter
    scratch: Scratch
    start: int = 0

    def take(self, content: TensorEntry | Tensor, part: range) -> None:
        """Fill what comes next with a range of what one file holds."""
        if isinstance(content, TensorEntry):
            self._take_file(content, part)
        elif content.dim() == 0:
            self.target.copy_(content.detach())
        else:
            place = self.target.narrow(self.dim, self.start, len(part))
            place.copy_(content.detach().narrow(self.dim, part.start, len(part)))
            self.meter.add(place.numel() * content.itemsize)
        self.start += len(part)

    def _take_file(self, entry: TensorEntry, part: range) -> None:
        # As a matrix: the dimensions before the one that is cut are rows.
        below = math.prod(entry.shape[self.dim + 1 :])
        stored = _dtype_of(entry)
        if self.dim == 0:
            rows, columns, width = part, range(below), below
            target = self.target.view(-1, max(below, 1))[self.start : self.start + len(part)]
        else:
            rows, width = range(math.prod(entry.shape[: self.dim])), entry.shape[self.dim] * below
            columns = range(part.start * below, part.stop * below)
            target = self.target.view(len(rows), -1)[:, self.start * below : (self.start + len(part)) * below]
        if not target.numel():
            return
        matrix = replace(entry, shape=(max(rows.stop, 1), width))
        step = max(1, CHUNK_BYTES // (len(columns) * stored.itemsize))
        with opened(entry.path) as descriptor:
            for first in range(0, len(rows), step):
                place = target[first : first + step]
                direct = place.dtype == stored and place.is_contiguous()
                chunk = place if direct else self.scratch.tensor(place.shape[0], len(columns), stored)
                read_rectangle(descriptor, matrix, chunk, rows.start + first, columns)
                _check(entry, chunk)
                if not direct:
                    place.copy_(chunk)
                self.meter.add(chunk.numel() * stored.itemsize)


def _dtype_of(content: TensorEntry | Tensor) -> torch.dtype:
    if isinstance(content, Tensor):
        return content.dtype
    if content.dtype not in _DTYPES:
        raise ModelLoadError(f"{content.path}: tensor {content.name!r}: {content.dtype} cannot be read here")
    return _DTYPES[content.dtype]


def _check(entry: TensorEntry, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not all(math.isfinite(float(value)) for value in torch.aminmax(tensor)):
        raise ModelLoadError(
            f"{entry.path}: tensor {entry.name!r}: expected finite weights, found others",
            hint="the file is damaged: fetch it again",
        )
