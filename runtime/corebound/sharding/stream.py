"""Reads a rank's part of a checkpoint, slice by slice, straight into the tensors it will compute with.

Bytes are read with pread, not mapped, so that the page cache never counts as memory of the rank: the peak is its
shard and one small buffer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from corebound.errors import ModelLoadError
from corebound.sharding.arena import allocate
from corebound.sharding.checkpoint import TensorEntry
from corebound.sharding.plan import Parameter, ShardPlan
from corebound.sharding.reading import CHUNK_BYTES, Meter, Scratch, damaged, opened, read_rectangle

_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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
    elsewhere: Collection[str] = (),
    meter: Meter | None = None,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a rank by field, in `dtype`, reading only the bytes that it needs.

    `entries` are the tensors by parameter name, as match_parameters returns them. Fields in `sinks` are not among the
    tensors: their rows are put there as they are read. Fields in `elsewhere` are left out. `meter` is told of the bytes
    that are read; shard_bytes says how many there are.

    Raises: ModelLoadError naming file and tensor for bytes that are missing or values that no model has.
    """
    sinks = sinks or {}
    meter = meter or Meter(0, None)
    apart = {*sinks, *elsewhere}
    fields = allocate({name: shape for name, shape in plan.field_shapes(rank).items() if name not in apart}, dtype)
    targets = _targets(plan, rank, {**fields, **{name: _SinkRows(sink, 0, dtype) for name, sink in sinks.items()}})
    targets.sort(key=lambda target: (entries[target[0].name].path, entries[target[0].name].start))
    files: dict[Path, list[tuple[Parameter, torch.Tensor | _SinkRows]]] = {}
    for parameter, target in targets:
        files.setdefault(entries[parameter.name].path, []).append((parameter, target))
    scratch = Scratch()
    for path, members in files.items():
        with opened(path) as descriptor:
            for parameter, target in members:
                reader = PartReader(descriptor, entries[parameter.name], meter, scratch)
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
        if parameter.field not in fields:
            continue
        start, rows = filled[parameter.field], plan.local_shape(parameter, rank)[0]
        field = fields[parameter.field]
        part = replace(field, first_row=start) if isinstance(field, _SinkRows) else field[start : start + rows]
        targets.append((parameter, part))
        filled[parameter.field] = start + rows
    return targets


def shard_bytes(plan: ShardPlan, rank: int, entries: Mapping[str, TensorEntry], elsewhere: Collection[str] = ()) -> int:
    """Return how many bytes load_shard reads."""
    total = 0
    for parameter in plan.parameters:
        if parameter.field not in elsewhere:
            share = sum(len(part) for part in plan.ranges(parameter, rank))
            total += entries[parameter.name].num_bytes // parameter.shape[parameter.rule.cut_dim] * share
    return total


class PartReader:
    """Copies parts of one tensor of a file into a target, converting and checking chunk by chunk."""

    def __init__(self, descriptor: int, entry: TensorEntry, meter: Meter, scratch: Scratch) -> None:
        self._descriptor, self._entry, self._meter, self._scratch = descriptor, entry, meter, scratch
        self._width = entry.shape[1] if len(entry.shape) > 1 else 1

    def fill(self, target: torch.Tensor | _SinkRows, parts: Sequence[range], cut_dim: int) -> None:
        """Fill `target` with the parts of the dimension `cut_dim`, one after the other.

        Raises: ModelLoadError naming file and tensor.
        """
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
        step = max(1, CHUNK_BYTES // (len(wanted) * self._entry.item_bytes))
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
            read_rectangle(self._descriptor, self._entry, chunk, rows.start + start, wanted)
            if narrow:
                chunk = chunk[:, columns.start : columns.stop]
            self._check(chunk, target.dtype)
            if isinstance(target, _SinkRows):
                target.put(begin + start, chunk.to(target.dtype).contiguous())
            elif buffer is not None:
                target[begin + start : begin + start + count].copy_(chunk)
            self._meter.add(count * len(columns) * self._entry.item_bytes)

    def _check(self, chunk: torch.Tensor, target: torch.dtype) -> None:
        if chunk.numel() == 0:
            return
        low, high = (float(value) for value in torch.aminmax(chunk))
        if not (low >= -_LARGEST_PLAUSIBLE and high <= _LARGEST_PLAUSIBLE):
            # A NaN makes both ends NaN, so this is also where a NaN is found.
            raise damaged(self._entry, f"expected finite weights, found values from {low:g} to {high:g}")
        largest = max(-low, high)
        if largest > torch.finfo(target).max:
            name = str(target).removeprefix("torch.")
            raise ModelLoadError(
                f"{self._entry.path}: tensor {self._entry.name!r}: a weight of {largest:g} does not fit {name}",
                hint="use --dtype bfloat16 or float32",
            )
