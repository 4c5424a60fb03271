"""Tensors of a checkpoint: whole in one file, or in parts that ranks wrote; read range by range either way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from corebound.errors import ModelLoadError
from corebound.sharding.checkpoint import TensorEntry
from corebound.sharding.reading import opened, read_rectangle

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

    def read(self, dim: int = 0, ranges: Sequence[range] | None = None) -> Tensor:
        """Return the ranges of a dimension, one after the other; None takes the whole tensor.

        Shapes: as the tensor, but `dim` has the length of the ranges.
        Raises: ModelLoadError naming file and tensor.
        """
        if not self.shape or (ranges is None and len(self.pieces) == 1):
            return _read(self.pieces[0].content)
        length = self.shape[dim]
        wanted = (range(length),) if ranges is None else tuple(ranges)
        if len(self.pieces) == 1:
            parts = [_read(self.pieces[0].content, dim, part) for part in wanted]
        elif dim != self.dim:
            whole = self.read(self.dim)
            parts = [whole.narrow(dim, part.start, len(part)) for part in wanted]
        else:
            parts = [tensor for part in wanted for tensor in self._across(part)]
        found = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
        if found.shape[dim] != sum(len(part) for part in wanted):
            raise ModelLoadError(f"tensor {self.name!r}: no file has all of {list(wanted)} of dimension {dim}")
        return found.contiguous()

    def _across(self, wanted: range) -> Iterator[Tensor]:
        """Yield a range from the pieces that hold it, in order."""
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
                yield _read(content, self.dim, range(start, start + stop - position))
                position = stop


def _read(content: TensorEntry | Tensor, dim: int = 0, part: range | None = None) -> Tensor:
    """Return a range of a dimension of what one file holds, None all of it."""
    if isinstance(content, Tensor):
        return content.detach() if part is None else content.detach().narrow(dim, part.start, len(part))
    if content.dtype not in _DTYPES:
        raise ModelLoadError(f"{content.path}: tensor {content.name!r}: {content.dtype} cannot be read here")
    shape = list(content.shape)
    part = range(shape[dim] if shape else 1) if part is None else part
    # As a matrix: the dimensions before the one that is cut are rows.
    below = math.prod(shape[dim + 1 :])
    rows, columns = math.prod(shape[:dim]), range(part.start * below, part.stop * below)
    if dim == 0:
        rows, columns = len(part), range(below)
    width = below if dim == 0 else shape[dim] * below
    target = torch.empty((rows, len(columns)), dtype=_DTYPES[content.dtype])
    if target.numel():
        matrix = replace(content, shape=(max(rows, part.stop), width))
        with opened(content.path) as descriptor:
            read_rectangle(descriptor, matrix, target, part.start if dim == 0 else 0, columns)
        _check(content, target)
    if shape:
        shape[dim] = len(part)
    return target.view(shape)


def _check(entry: TensorEntry, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not all(math.isfinite(float(value)) for value in torch.aminmax(tensor)):
        raise ModelLoadError(
            f"{entry.path}: tensor {entry.name!r}: expected finite weights, found others",
            hint="the file is damaged: fetch it again",
        )
