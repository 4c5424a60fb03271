"""Reads a rank's part of a checkpoint, slice by slice, straight into the tensors it will compute with.

Bytes are read with pread, not mapped, so that the page cache never counts as memory of the rank: the peak is its
shard and one small buffer.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from corebound.errors import ModelLoadError
from corebound.sharding.arena import allocate
from corebound.sharding.checkpoint import TensorEntry
from corebound.sharding.plan import Parameter, ShardPlan

Progress = Callable[[int, int], None]

_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK_BYTES = 4 << 20  # stays in the second-level cache, where the check of the values finds it again
_PAGE_BYTES = 4096
_SINK_ROWS = 64  # of a panel: whole ones are put together in the cache

# A weight beyond this is no trained number: flipping the top bit of an exponent multiplies it by 2**128.
_LARGEST_PLAUSIBLE = 2.0**40


def load_shard(
    plan: ShardPlan,
    rank: int,
    entries: Mapping[str, TensorEntry],
    *,
    dtype: torch.dtype,
    sinks: Mapping[str, RowSink] | None = None,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a rank by field, in `dtype`, reading only the bytes that it needs.

    `entries` are the tensors by parameter name, as match_parameters returns them. Fields in `sinks` are not among the
    tensors: their rows are put there as they are read. `progress` is called with the bytes read so far and the bytes
    there are to read.

    Raises: ModelLoadError naming file and tensor for bytes that are missing or values that no model has.
    """
    sinks = sinks or {}
    fields = allocate({name: shape for name, shape in plan.field_shapes(rank).items() if name not in sinks}, dtype)
    targets = _targets(plan, rank, {**fields, **{name: _SinkRows(sink, 0, dtype) for name, sink in sinks.items()}})
    targets.sort(key=lambda target: (entries[target[0].name].path, entries[target[0].name].start))
    meter = _Meter(sum(_read_bytes(plan, rank, p, entries[p.name]) for p, _ in targets), progress)
    files: dict[Path, list[tuple[Parameter, torch.Tensor | _SinkRows]]] = {}
    for parameter, target in targets:
        files.setdefault(entries[parameter.name].path, []).append((parameter, target))
    scratch = _Scratch()
    for path, members in files.items():
        with _opened(path) as descriptor:
            for parameter, target in members:
                reader = _Reader(descriptor, entries[parameter.name], meter, scratch)
                reader.fill(target, plan.ranges(parameter, rank), parameter.rule.cut_dim)
    return fields


class RowSink(Protocol):
    """What takes the rows of a matrix one part after the other."""

    def put(self, first_row: int, rows: torch.Tensor) -> None:
        """Take rows [n, inputs], contiguous, in the dtype that was asked for; they are overwritten afterwards."""


@dataclass(frozen=True)
class _SinkRows:
    """The rows of a sink from `first_row` on."""

    sink: RowSink
    first_row: int
    dtype: torch.dtype

    def put(self, start: int, rows: torch.Tensor) -> None:
        self.sink.put(self.first_row + start, rows)


def _targets(
    plan: ShardPlan, rank: int, fields: Mapping[str, torch.Tensor | _SinkRows]
) -> list[tuple[Parameter, torch.Tensor | _SinkRows]]:
    """Return each parameter with its rows of the field it is a part of."""
    filled = dict.fromkeys(fields, 0)
    targets: list[tuple[Parameter, torch.Tensor | _SinkRows]] = []
    for parameter in plan.parameters:
        start, rows = filled[parameter.field], plan.local_shape(parameter, rank)[0]
        field = fields[parameter.field]
        part = replace(field, first_row=start) if isinstance(field, _SinkRows) else field[start : start + rows]
        targets.append((parameter, part))
        filled[parameter.field] = start + rows
    return targets


def _read_bytes(plan: ShardPlan, rank: int, parameter: Parameter, entry: TensorEntry) -> int:
    share = sum(len(part) for part in plan.ranges(parameter, rank))
    return entry.num_bytes // parameter.shape[parameter.rule.cut_dim] * share


class _Meter:
    def __init__(self, num_bytes: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, num_bytes, progress

    def add(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Scratch:
    """One buffer for all that is read and converted.

    malloc would take a new one for each tensor from its heap after the first, leave gaps between them and never give
    them back: 4 to 16 MiB of the rank's memory.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def tensor(self, num_rows: int, num_columns: int, dtype: torch.dtype) -> torch.Tensor:
        """Return rows and columns of the buffer, valid until the next call."""
        num_bytes = num_rows * num_columns * dtype.itemsize
        if self._bytes.numel() < num_bytes:
            self._bytes = torch.frombuffer(mmap.mmap(-1, max(num_bytes, _CHUNK_BYTES)), dtype=torch.uint8)
        return self._bytes[:num_bytes].view(dtype).view(num_rows, num_columns)


class _Reader:
    """Copies parts of one tensor of a file into a target, converting and checking chunk by chunk."""

    def __init__(self, descriptor: int, entry: TensorEntry, meter: _Meter, scratch: _Scratch) -> None:
        self._descriptor, self._entry, self._meter, self._scratch = descriptor, entry, meter, scratch
        self._width = entry.shape[1] if len(entry.shape) > 1 else 1
        self._row_bytes = self._width * entry.item_bytes

    def fill(self, target: torch.Tensor | _SinkRows, parts: tuple[range, ...], cut_dim: int) -> None:
        """Fill `target` with the parts of the dimension `cut_dim`, one after the other."""
        if cut_dim == 1:
            assert len(parts) == 1, "inputs are cut in one piece"
            self._fill_rows(target, 0, range(self._entry.shape[0]), parts[0])
            return
        rows = target if isinstance(target, _SinkRows) else target.view(target.shape[0], self._width)
        start = 0
        for part in parts:
            self._fill_rows(rows, start, part, range(self._width))
            start += len(part)

    def _fill_rows(self, target: torch.Tensor | _SinkRows, begin: int, rows: range, columns: range) -> None:
        """Fill target [begin and on, columns] from the rectangle of the tensor."""
        source = _TORCH_DTYPES[self._entry.dtype]
        # Parts of rows shorter than a page touch every page anyway: read whole rows and keep the columns.
        narrow = len(columns) < self._width and len(columns) * self._entry.item_bytes < _PAGE_BYTES
        wanted = range(self._width) if narrow else columns
        step = max(1, _CHUNK_BYTES // (len(wanted) * self._entry.item_bytes))
        if isinstance(target, _SinkRows):
            step = -(-step // _SINK_ROWS) * _SINK_ROWS
        direct = isinstance(target, torch.Tensor) and source == target.dtype and not narrow
        buffer = None if direct else self._scratch.tensor(min(step, len(rows)), len(wanted), source)
        for start in range(0, len(rows), step):
            count = min(step, len(rows) - start)
            if buffer is None:
                assert isinstance(target, torch.Tensor)
                chunk = target[begin + start : begin + start + count]
            else:
                chunk = buffer[:count]
            self._read(chunk, rows.start + start, wanted)
            if narrow:
                chunk = chunk[:, columns.start : columns.stop]
            self._check(chunk, target.dtype)
            if isinstance(target, _SinkRows):
                target.put(begin + start, chunk.to(target.dtype).contiguous())
            elif buffer is not None:
                target[begin + start : begin + start + count].copy_(chunk)
            self._meter.add(count * len(columns) * self._entry.item_bytes)

    def _read(self, chunk: torch.Tensor, first_row: int, columns: range) -> None:
        view = chunk.view(-1).view(torch.uint8).numpy().data
        offset = self._entry.start + first_row * self._row_bytes + columns.start * self._entry.item_bytes
        if len(columns) == self._width:
            self._read_span(view, offset)
            return
        part_bytes = len(columns) * self._entry.item_bytes
        for row in range(chunk.shape[0]):
            self._read_span(view[row * part_bytes : (row + 1) * part_bytes], offset + row * self._row_bytes)

    def _read_span(self, view: memoryview, offset: int) -> None:
        while view:
            try:
                count = os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                raise self._damaged(f"cannot be read: {error.strerror or error}") from error
            if count == 0:
                raise self._damaged(f"the file ends at byte {offset}, before the tensor does")
            view, offset = view[count:], offset + count

    def _check(self, chunk: torch.Tensor, target: torch.dtype) -> None:
        if chunk.numel() == 0:
            return
        low, high = (float(value) for value in torch.aminmax(chunk))
        if not (low >= -_LARGEST_PLAUSIBLE and high <= _LARGEST_PLAUSIBLE):
            # A NaN makes both ends NaN, so this is also where a NaN is found.
            raise self._damaged(f"expected finite weights, found values from {low:g} to {high:g}")
        largest = max(-low, high)
        if largest > torch.finfo(target).max:
            name = str(target).removeprefix("torch.")
            raise ModelLoadError(
                f"{self._entry.path}: tensor {self._entry.name!r}: a weight of {largest:g} does not fit {name}",
                hint="use --dtype bfloat16 or float32",
            )

    def _damaged(self, what: str) -> ModelLoadError:
        return ModelLoadError(
            f"{self._entry.path}: tensor {self._entry.name!r}: {what}",
            hint="the file is damaged or changed while it was read: fetch it again",
        )


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
