"""Tensors of a checkpoint: whole in one file, or in parts that ranks wrote; read range by range either way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

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
        parts = list(self._parts(dim, wanted))
        stored = _dtype_of(self.pieces[0].content)
        length = sum(len(part) for part in wanted)
        shape = [*self.shape[:dim], length, *self.shape[dim + 1 :]] if self.shape else []
        result = torch.empty(shape, dtype=dtype if dtype is not None and stored.is_floating_point else stored)
        reading = _Reading(result, meter or Meter(0, None), Scratch())
        for part in parts:
            reading.take(part)
        return result

    def num_bytes(self) -> int:
        """Return how many bytes of files the whole tensor takes."""
        return math.prod(self.shape) * _dtype_of(self.pieces[0].content).itemsize

    def _parts(self, dim: int, wanted: Sequence[range]) -> Iterator[_Part]:
        """Yield where the ranges of a dimension are, and where they belong in what is made of them, in order."""
        start = 0
        for part in wanted:
            place = range(start, start + len(part))
            if len(self.pieces) == 1:
                yield _Part(self.pieces[0].content, {dim: part}, {dim: place})
            elif dim == self.dim:
                for content, there, here in self._across(part):
                    yield _Part(content, {dim: there}, {dim: _moved(here, start - part.start)})
            else:
                # Of each piece only what is wanted of it: all pieces together are the whole tensor.
                for content, there, here in self._across(range(self.shape[self.dim])):
                    yield _Part(content, {dim: part, self.dim: there}, {dim: place, self.dim: here})
            start = place.stop

    def _across(self, wanted: range) -> Iterator[tuple[TensorEntry | Tensor, range, range]]:
        """Yield the pieces that hold a range of the split dimension, where in each, and which of the range, in order.

        Raises: ModelLoadError when no piece has some of it.
        """
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
                found = range(position, min(part.stop, wanted.stop))
                yield content, _moved(found, offset - part.start), found
                position = found.stop
        if position < wanted.stop:
            missing = range(position, wanted.stop)
            raise ModelLoadError(f"tensor {self.name!r}: no file has all of {missing} of dimension {self.dim}")


@dataclass(frozen=True)
class _Part:
    """What is read in one go: ranges of one or two dimensions of what a file holds, and of what they belong in."""

    content: TensorEntry | Tensor
    source: Mapping[int, range]
    target: Mapping[int, range]


@dataclass(frozen=True)
class _Reading:
    """Fills a contiguous tensor part by part."""

    target: Tensor
    meter: Meter
    scratch: Scratch

    def take(self, part: _Part) -> None:
        """Fill one part's place."""
        if isinstance(part.content, TensorEntry):
            self._take_file(part.content, part)
        elif part.content.dim() == 0:
            self.target.copy_(part.content.detach())
        else:
            place = _narrowed(self.target, part.target)
            place.copy_(_narrowed(part.content.detach(), part.source))
            self.meter.add(place.numel() * part.content.itemsize)

    def _take_file(self, entry: TensorEntry, part: _Part) -> None:
        stored = _dtype_of(entry)
        source, target = _as_blocks(entry.shape, part.source), _as_blocks(self.target.shape, part.target)
        if not self.target.numel():
            return
        num_rows = source.blocks[-1].stop if source.blocks else 0
        matrix = replace(entry, shape=(max(num_rows, 1), source.width))
        places = self.target.view(-1, target.width)[:, target.columns.start : target.columns.stop]
        step = max(1, CHUNK_BYTES // (len(source.columns) * stored.itemsize))
        with opened(entry.path) as descriptor:
            for rows, into in zip(source.blocks, target.blocks, strict=True):
                for first in range(0, len(rows), step):
                    place = places[into.start + first : min(into.start + first + step, into.stop)]
                    direct = place.dtype == stored and place.is_contiguous()
                    chunk = place if direct else self.scratch.tensor(place.shape[0], place.shape[1], stored)
                    read_rectangle(descriptor, matrix, chunk, rows.start + first, source.columns)
                    _check(entry, chunk)
                    if not direct:
                        place.copy_(chunk)
                    self.meter.add(chunk.numel() * stored.itemsize)


class _Blocks(NamedTuple):
    """Where a part lies in a tensor that is seen as a matrix of `width` columns: blocks of rows, the same columns."""

    width: int
    blocks: list[range]
    columns: range


def _as_blocks(shape: Sequence[int], cut: Mapping[int, range]) -> _Blocks:
    """Return where ranges of one or two dimensions lie; columns begin at the last of them, but never at the first."""
    sizes = tuple(shape) or (1,)
    last = max(cut)
    if last == 0:
        width = math.prod(sizes[1:])
        return _Blocks(width, [cut[0]], range(width))
    first = min(cut) if len(cut) > 1 else 0
    wanted = cut[first] if len(cut) > 1 else range(sizes[0])
    between, below = math.prod(sizes[first + 1 : last]), math.prod(sizes[last + 1 :])
    starts = range(0, math.prod(sizes[:last]), max(sizes[first] * between, 1))
    blocks = [range(start + wanted.start * between, start + wanted.stop * between) for start in starts]
    return _Blocks(sizes[last] * below, blocks, range(cut[last].start * below, cut[last].stop * below))


def _narrowed(tensor: Tensor, cut: Mapping[int, range]) -> Tensor:
    for dim, part in cut.items():
        tensor = tensor.narrow(dim, part.start, len(part))
    return tensor


def _moved(part: range, by: int) -> range:
    return range(part.start + by, part.stop + by)


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
