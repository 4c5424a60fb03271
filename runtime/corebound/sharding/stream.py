"""Reads a rank's part of a checkpoint, slice by slice, straight into the tensors it will compute with.

Bytes are read with pread, not mapped, so that the page cache never counts as memory of the rank: the peak is its
shard and one small buffer for each thread.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from corebound.errors import ModelLoadError
from corebound.kernels import values
from corebound.sharding.arena import allocate
from corebound.sharding.checkpoint import TensorEntry
from corebound.sharding.pages import with_pages_ahead
from corebound.sharding.plan import Parameter, ShardPlan
from corebound.sharding.reading import CHUNK_BYTES, Meter, Scratch, damaged, opened, read_rectangle
from corebound.sharding.workers import Part, run_parts

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PAGE_BYTES = 4096
_SINK_ROWS = 64  # of a panel: whole ones are put together in the cache
_FILL_BYTES = 8 << 20  # of a part that one native call takes from the file to its place, piece by piece

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
    num_threads: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a rank by field, in `dtype`, reading only the bytes that it needs.

    `entries` are the tensors by parameter name, as match_parameters returns them. Fields in `sinks` are not among the
    tensors: their rows are put there as they are read. Fields in `elsewhere` are left out. `meter` is told of the bytes
    that are read; shard_bytes says how many there are. With `num_threads` so many threads read, check and convert by
    native calls, and put rows into sinks at the same time; None does all of it on this thread, with torch.

    Raises: ModelLoadError naming file and tensor for bytes that are missing or values that no model has.
    """
    sinks = sinks or {}
    meter = meter or Meter(0, None)
    apart = {*sinks, *elsewhere}
    fields = allocate({name: shape for name, shape in plan.field_shapes(rank).items() if name not in apart}, dtype)
    targets = _targets(plan, rank, {**fields, **{name: _SinkRows(sink, 0) for name, sink in sinks.items()}})
    targets.sort(key=lambda target: (entries[target[0].name].path, entries[target[0].name].start))
    handling = _NativeValues(dtype) if num_threads is not None and dtype == torch.bfloat16 else _TorchValues(dtype)
    with contextlib.ExitStack() as files:
        descriptors = {
            path: files.enter_context(opened(path)) for path in dict.fromkeys(entries[p.name].path for p, _ in targets)
        }

        def parts() -> Iterator[Part]:
            for parameter, target in targets:
                entry = entries[parameter.name]
                reader = PartReader(descriptors[entry.path], entry, meter, handling=handling)
                yield from reader.parts(target, plan.ranges(parameter, rank), parameter.rule.cut_dim)

        in_order = {parameter.field: to.sink for parameter, to in targets if isinstance(to, _SinkRows)}
        straight = (sink.memory for sink in in_order.values() if isinstance(sink, FileSink))
        run_parts(with_pages_ahead(parts(), straight), num_threads or 1)
    return fields


class RowSink(Protocol):
    """What takes the rows of a matrix one part after the other, or several parts at once from several threads."""

    def put(self, first_row: int, rows: torch.Tensor) -> None:
        """Take finite rows [n, inputs] in the type of the checkpoint; they are overwritten afterwards."""


@runtime_checkable
class FileSink(RowSink, Protocol):
    """What also takes rows from a file itself, which saves the calls between."""

    @property
    def memory(self) -> torch.Tensor:
        """The bytes that rows are stored in, [bytes] uint8."""

    def fill(self, first_row: int, source: values.FileRows, largest: float, scratch: torch.Tensor) -> int:
        """Take rows until one that cannot be read or has a magnitude beyond `largest`, and return how many.

        Shapes: `scratch` [bytes], overwritten.
        """


@dataclass(frozen=True)
class _SinkRows:
    """The rows of a sink from `first_row` on."""

    sink: RowSink
    first_row: int

    def put(self, start: int, rows: torch.Tensor) -> None:
        self.sink.put(self.first_row + start, rows)


@dataclass(frozen=True)
class _TorchValues:
    """How values are checked and converted."""

    dtype: torch.dtype

    def check(self, entry: TensorEntry, chunk: torch.Tensor) -> None:
        """Raise ModelLoadError for values that no model has, or that do not fit the type."""
        if chunk.numel() == 0:
            return
        low, high = (float(value) for value in torch.aminmax(chunk))
        if not (low >= -_LARGEST_PLAUSIBLE and high <= _LARGEST_PLAUSIBLE):
            # A NaN makes both ends NaN, so this is also where a NaN is found.
            raise damaged(entry, f"expected finite weights, found values from {low:g} to {high:g}")
        largest = max(-low, high)
        if largest > torch.finfo(self.dtype).max:
            name = str(self.dtype).removeprefix("torch.")
            raise ModelLoadError(
                f"{entry.path}: tensor {entry.name!r}: a weight of {largest:g} does not fit {name}",
                hint="use --dtype bfloat16 or float32",
            )

    def convert(self, chunk: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(chunk)


class _NativeValues(_TorchValues):
    """The same by native calls, for bfloat16."""

    def check(self, entry: TensorEntry, chunk: torch.Tensor) -> None:
        if not values.largest_magnitude(chunk) <= _LARGEST_PLAUSIBLE:
            super().check(entry, chunk)

    def convert(self, chunk: torch.Tensor, target: torch.Tensor) -> None:
        values.to_bfloat16(chunk, target)


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
    """Copies parts of one tensor of a file into a target, converting and checking chunk by chunk.

    `handling` is how values are checked and converted; without it `fill` does that with torch, on its own thread and
    with the buffer `scratch`.
    """

    def __init__(
        self,
        descriptor: int,
        entry: TensorEntry,
        meter: Meter,
        scratch: Scratch | None = None,
        *,
        handling: _TorchValues | None = None,
    ) -> None:
        self._descriptor, self._entry, self._meter = descriptor, entry, meter
        self._scratch, self._values = scratch or Scratch(), handling
        self._width = entry.shape[1] if len(entry.shape) > 1 else 1
        self._source = TORCH_DTYPES[entry.dtype]

    def fill(self, target: torch.Tensor, held: Sequence[range], cut_dim: int) -> None:
        """Fill `target` with the parts of the dimension `cut_dim`, one after the other.

        Shapes: as the tensor, but `cut_dim` has the length of the parts.
        Raises: ModelLoadError naming file and tensor.
        """
        self._values = self._values or _TorchValues(target.dtype)
        for part in self.parts(target, held, cut_dim):
            part(self._scratch)

    def parts(self, target: torch.Tensor | _SinkRows, held: Sequence[range], cut_dim: int) -> Iterator[Part]:
        """Yield what fills `target` with the parts of the dimension `cut_dim`, one after the other.

        Shapes: as `fill`.
        """
        if cut_dim == 1:
            assert len(held) == 1, "inputs are cut in one piece"
            yield from self._chunks(target, 0, range(self._entry.shape[0]), held[0])
            return
        rows = target if isinstance(target, _SinkRows) else target.view(target.shape[0], self._width)
        start = 0
        for part in held:
            yield from self._chunks(rows, start, part, range(self._width))
            start += len(part)

    def _chunks(self, target: torch.Tensor | _SinkRows, begin: int, rows: range, columns: range) -> Iterator[Part]:
        """Yield what fills target [begin and on, columns] from the rectangle of the tensor, a chunk each."""
        # Parts of rows shorter than a page touch every page anyway: read whole rows and keep the columns.
        narrow = len(columns) < self._width and len(columns) * self._entry.item_bytes < _PAGE_BYTES
        wanted = range(self._width) if narrow else columns
        straight = self._fills(target)
        step = max(1, (_FILL_BYTES if straight else CHUNK_BYTES) // (len(wanted) * self._entry.item_bytes))
        start = 0
        while start < len(rows):
            stop = min(start + step, len(rows))
            if isinstance(target, _SinkRows):
                # Up to the end of a panel, so that no two threads put rows into one.
                first = target.first_row + begin
                stop = min(-(-(first + stop) // _SINK_ROWS) * _SINK_ROWS - first, len(rows))
            place = slice(begin + start, begin + stop)
            if straight:
                assert isinstance(target, _SinkRows)
                yield functools.partial(self._fill, target, place, rows.start + start, wanted, columns)
            else:
                yield functools.partial(self._copy, target, place, rows.start + start, wanted, columns)
            start = stop

    def _fills(self, target: torch.Tensor | _SinkRows) -> bool:
        native = isinstance(self._values, _NativeValues)
        return native and isinstance(target, _SinkRows) and isinstance(target.sink, FileSink)

    def _fill(
        self,
        target: _SinkRows,
        place: slice,
        first_row: int,
        wanted: range,
        columns: range,
        own: Scratch,
    ) -> None:
        """Do what _copy does by one native call. Rows that it leaves are copied, which says what is wrong with them."""
        assert isinstance(target.sink, FileSink)
        row_bytes = self._width * self._entry.item_bytes
        source = values.FileRows(
            descriptor=self._descriptor,
            dtype=self._source,
            offset=self._entry.start + first_row * row_bytes + wanted.start * self._entry.item_bytes,
            num_rows=place.stop - place.start,
            row_bytes=row_bytes,
            num_read=len(wanted),
            num_skipped=columns.start - wanted.start,
        )
        scratch = own.buffer(source.scratch_bytes)
        done = target.sink.fill(target.first_row + place.start, source, _LARGEST_PLAUSIBLE, scratch)
        self._meter.add(done * len(columns) * self._entry.item_bytes)
        for row in range(done, source.num_rows):
            self._copy(target, slice(place.start + row, place.start + row + 1), first_row + row, wanted, columns, own)

    def _copy(
        self,
        target: torch.Tensor | _SinkRows,
        place: slice,
        first_row: int,
        wanted: range,
        columns: range,
        own: Scratch,
    ) -> None:
        """Fill the rows `place` of a target with rows from `first_row` on, of which `wanted` is read."""
        count = place.stop - place.start
        if isinstance(target, torch.Tensor) and self._source == target.dtype and wanted == columns:
            chunk = target[place]
        else:
            chunk = own.tensor(count, len(wanted), self._source)
        read_rectangle(self._descriptor, self._entry, chunk, first_row, wanted)
        if wanted != columns:
            chunk = chunk[:, columns.start : columns.stop]
        assert self._values is not None
        self._values.check(self._entry, chunk)
        if isinstance(target, _SinkRows):
            target.put(place.start, chunk)
        elif chunk.data_ptr() != target[place].data_ptr():
            self._values.convert(chunk, target[place])
        self._meter.add(count * len(columns) * self._entry.item_bytes)
