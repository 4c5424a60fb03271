"""Weights as a checkpoint has them, on their way into tensors and panels, by native calls beside which Python goes on.

What they do is what `torch.aminmax`, `Tensor.to` and `quantization.rtn.quantize` do; tests hold them to that.
"""

from __future__ import annotations

import ctypes

import torch

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


def _struct(values: torch.Tensor) -> _ValueStruct:
    assert values.dim() == 2 and (values.stride(1) == 1 or values.shape[1] == 1), (values.shape, values.stride())
    return _ValueStruct(
        values=values.data_ptr(),
        kind=_KINDS.index(values.dtype),
        rows=values.shape[0],
        columns=values.shape[1],
        stride=values.stride(0),
    )
