"""Weights as a checkpoint has them, on their way into tensors and panels, by native calls beside which Python goes on.

What they do is what `torch.aminmax`, `Tensor.to` and `quantization.rtn.quantize` do; tests hold them to that.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from corebound.kernels.panel_format import PANEL_OUTPUTS, MatrixStruct
from corebound.kernels.panels import PanelMatrix, library

_KINDS = (torch.bfloat16, torch.float16, torch.float32)  # kernels::ValueKind


class _ValueStruct(ctypes.Structure):
    _fields_ = [
        ("values", ctypes.c_void_p),
        ("kind", ctypes.c_int),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("stride", ctypes.c_int64),
    ]


# Pieces of rows that one thread reads and packs have so much at most: in the caches until they are panels.
_PIECE_BYTES = 1 << 20


class _FillStruct(ctypes.Structure):
    _fields_ = [
        ("matrix", MatrixStruct),
        ("descriptor", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("offset", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("read_bytes", ctypes.c_int64),
        ("skipped", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("largest", ctypes.c_float),
        ("scratch", ctypes.c_void_p),
        ("scratch_bytes", ctypes.c_int64),
    ]


@dataclass(frozen=True, kw_only=True)
class FileRows:
    """Rows of a tensor in an open file: `num_rows` of them, `row_bytes` apart from byte `offset` of the file on.

    Of each row `num_read` elements are read, and those from `num_skipped` on are kept.
    """

    descriptor: int
    dtype: torch.dtype
    offset: int
    num_rows: int
    row_bytes: int
    num_read: int
    num_skipped: int

    @property
    def scratch_bytes(self) -> int:
        """Return how large a buffer fill_rows needs."""
        half_panel = PANEL_OUTPUTS // 2 * self.num_read
        rounded = 0 if self.dtype == torch.bfloat16 else half_panel * torch.bfloat16.itemsize + 64
        return rounded + max(_PIECE_BYTES, half_panel * self.dtype.itemsize)


def largest_magnitude(values: torch.Tensor) -> float:
    """Return the largest magnitude; infinity or NaN where one is among the values.

    Shapes: values [rows, columns], rows may lie apart; bfloat16, float16 or float32.
    """
    return float(library().corebound_panel_largest(ctypes.byref(_struct(values))))


def to_bfloat16(values: torch.Tensor, target: torch.Tensor) -> None:
    """Round finite values [rows, columns] into `target`, bfloat16 of the same shape and contiguous."""
    assert target.dtype == torch.bfloat16 and target.is_contiguous() and target.shape == values.shape
    library().corebound_panel_to_bfloat16(ctypes.byref(_struct(values)), target.data_ptr())


def load_rows(matrix: PanelMatrix, first_row: int, values: torch.Tensor) -> None:
    """Store finite rows [n, inputs] in a matrix: rounded to bfloat16 and, by its format, quantized.

    Codes are those of `quantization.rtn.quantize`. Several threads may do it at once for different rows.
    """
    assert values.shape[1] == matrix.inputs and first_row + values.shape[0] <= matrix.outputs
    with matrix.rows_locked(first_row, values.shape[0]):
        library().corebound_panel_load(ctypes.byref(matrix.struct), ctypes.byref(_struct(values)), first_row)


def fill_rows(matrix: PanelMatrix, first_row: int, source: FileRows, largest: float, scratch: torch.Tensor) -> int:
    """Store rows of a file in a matrix as load_rows does, and return how many.

    Fewer than the source has are stored where a row cannot be read or has a magnitude beyond `largest`.

    Shapes: scratch [source.scratch_bytes] uint8.
    """
    assert first_row + source.num_rows <= matrix.outputs and scratch.numel() >= source.scratch_bytes
    assert source.num_skipped + matrix.inputs <= source.num_read
    what = _FillStruct(
        matrix=matrix.struct,
        descriptor=source.descriptor,
        kind=_KINDS.index(source.dtype),
        offset=source.offset,
        row_bytes=source.row_bytes,
        read_bytes=source.num_read * source.dtype.itemsize,
        skipped=source.num_skipped,
        first_row=first_row,
        rows=source.num_rows,
        largest=largest,
        scratch=scratch.data_ptr(),
        scratch_bytes=source.scratch_bytes,
    )
    with matrix.rows_locked(first_row, source.num_rows):
        return int(library().corebound_panel_fill(ctypes.byref(what)))


def _struct(values: torch.Tensor) -> _ValueStruct:
    assert values.dim() == 2 and (values.stride(1) == 1 or values.shape[1] == 1), (values.shape, values.stride())
    return _ValueStruct(
        values=values.data_ptr(),
        kind=_KINDS.index(values.dtype),
        rows=values.shape[0],
        columns=values.shape[1],
        stride=values.stride(0),
    )
