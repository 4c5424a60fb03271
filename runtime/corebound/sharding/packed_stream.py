"""Reads a rank's part of packed matrices, one at a time, and hands on their codes a few rows after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from corebound.quantization.matrix import QuantizedMatrix
from corebound.quantization.packed import PackedFormat, Rectangle, rectangles
from corebound.quantization.unpack import unpack, unpack_zeros
from corebound.sharding.activation_order import in_order
from corebound.sharding.checkpoint import TensorEntry
from corebound.sharding.expected import packed_fields, packed_name
from corebound.sharding.plan import Parameter, ShardPlan
from corebound.sharding.reading import Meter, Scratch, opened, read_rectangle

_TORCH_DTYPES = {"I32": torch.int32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK_CODES = 1 << 20  # as words, bytes and floats they are some MiB together
_ROW_GRAIN = 64  # a panel, and a multiple of the codes in a word


class CodeSink(Protocol):
    """What takes the rows of a quantized matrix one part after the other."""

    def put(self, first_row: int, rows: QuantizedMatrix) -> None:
        """Take rows; they are overwritten afterwards."""


@dataclass(frozen=True, kw_only=True)
class PackedField:
    """What a field of packed matrices is stored as, found before any of its codes is read.

    `symmetric`: every zero is the middle of the codes. `in_order`: groups are of neighbouring inputs. `scale_dtype` is
    the type that holds every scale as it is.
    """

    parameters: tuple[Parameter, ...]
    symmetric: bool
    in_order: bool
    scale_dtype: torch.dtype


class PackedReader:
    """Reads the packed matrices of one rank.

    `entries` are the tensors by parameter name, as match_parameters returns them.
    """

    def __init__(self, plan: ShardPlan, rank: int, packed: PackedFormat, entries: Mapping[str, TensorEntry]) -> None:
        self._plan, self._rank, self._packed, self._entries = plan, rank, packed, entries
        self._scratch: dict[str, Scratch] = {}

    def fields(self) -> dict[str, PackedField]:
        """Return the packed matrices by field, after a look at their zeros and the order of their groups.

        Raises: ModelLoadError for a field of which some matrices are packed and some are not.
        """
        members = packed_fields(self._plan.parameters, self._packed, self._entries)
        return {field: self._survey(parameters) for field, parameters in members.items()}

    def num_bytes(self, field: PackedField) -> int:
        """Return how many bytes `load` reads."""
        return sum(
            len(rows) * len(columns) * self._entry(parameter, suffix).item_bytes
            for parameter in field.parameters
            for part in self._parts(parameter)
            for suffix, (rows, columns) in self._rectangles(parameter, *part).items()
        )

    def load(self, field: PackedField, sink: CodeSink, meter: Meter) -> None:
        """Put all rows of a field into `sink`, in the order in which the rank holds them.

        Raises: ModelLoadError naming file and tensor.
        """
        first_row = 0
        for parameter in field.parameters:
            for rows, columns in self._parts(parameter):
                self._load_part(parameter, rows, columns, sink, first_row, meter)
                first_row += len(rows)

    def _load_part(
        self, parameter: Parameter, rows: range, columns: range, sink: CodeSink, first_row: int, meter: Meter
    ) -> None:
        stored = self._rectangles(parameter, rows, columns)
        tensors = {}
        for suffix, rectangle in stored.items():
            tensors[suffix] = self._read(parameter, suffix, rectangle)
            meter.add(tensors[suffix].nbytes)
        where = str(self._entry(parameter, "qweight").path) + f": {parameter.name}"
        step = max(_ROW_GRAIN, _CHUNK_CODES // max(1, len(columns)) // _ROW_GRAIN * _ROW_GRAIN)
        start = rows.start
        while start < rows.stop:
            # At whole words of the file, so that no word is in two parts.
            stop = min(rows.stop, (start + step) // _ROW_GRAIN * _ROW_GRAIN)
            part = range(start, stop)
            inner = self._rectangles(parameter, part, columns)
            views = {suffix: _within(tensors[suffix], stored[suffix], inner[suffix]) for suffix in stored}
            sink.put(
                first_row + start - rows.start,
                unpack(self._packed, parameter.shape[1], part, columns, views, where=where),
            )
            start = stop

    def _survey(self, parameters: tuple[Parameter, ...]) -> PackedField:
        symmetric = True
        for parameter in parameters:
            for rows, columns in self._parts(parameter):
                zeros = self._read(parameter, "qzeros", self._rectangles(parameter, rows, columns)["qzeros"])
                middle = self._packed.scheme.middle_code
                symmetric = symmetric and bool((unpack_zeros(self._packed, rows, zeros) == middle).all())
        orders = [self._entries.get(packed_name(parameter, "g_idx")) for parameter in parameters]
        dtypes = {self._entry(parameter, "scales").dtype for parameter in parameters}
        return PackedField(
            parameters=parameters,
            symmetric=symmetric,
            in_order=all(entry is None or in_order(entry, self._packed) for entry in orders),
            scale_dtype=_TORCH_DTYPES[dtypes.pop()] if len(dtypes) == 1 else torch.float32,
        )

    def _parts(self, parameter: Parameter) -> list[tuple[range, range]]:
        """Return the rows and columns that the rank holds, one after the other."""
        parts = self._plan.ranges(parameter, self._rank)
        if parameter.rule.cut_dim == 1:
            return [(range(parameter.shape[0]), part) for part in parts]
        return [(part, range(parameter.shape[1])) for part in parts]

    def _rectangles(self, parameter: Parameter, rows: range, columns: range) -> dict[str, Rectangle]:
        found = rectangles(self._packed, parameter.shape[1], rows, columns)
        return {suffix: part for suffix, part in found.items() if packed_name(parameter, suffix) in self._entries}

    def _entry(self, parameter: Parameter, suffix: str) -> TensorEntry:
        return self._entries[packed_name(parameter, suffix)]

    def _read(self, parameter: Parameter, suffix: str, rectangle: Rectangle) -> torch.Tensor:
        """Return a part of a stored tensor, valid until the next one of this suffix."""
        entry, (rows, columns) = self._entry(parameter, suffix), rectangle
        scratch = self._scratch.setdefault(suffix, Scratch())
        target = scratch.tensor(len(rows), len(columns), _TORCH_DTYPES[entry.dtype])
        with opened(entry.path) as descriptor:
            read_rectangle(descriptor, entry, target, rows.start, columns)
        return target


def _within(tensor: torch.Tensor, whole: Rectangle, part: Rectangle) -> torch.Tensor:
    """Return the rectangle `part` of a tensor that holds the rectangle `whole`."""
    rows, columns = (
        slice(inner.start - outer.start, inner.stop - outer.start) for outer, inner in zip(whole, part, strict=True)
    )
    return tensor[rows, columns]
