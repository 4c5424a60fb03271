"""What quantized matrices mean, in plain torch: the values they stand for, their product, and how far off they may be.

Letters: T rows of inputs, N outputs, K inputs, G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corebound.quantization.matrix import QuantizedMatrix

# Weight, scale and quotient are rounded to float32, each by 2**-24 of at most 256 steps.
_ROUNDING_STEPS = 4 * 2.0**-16


def dequantize(matrix: QuantizedMatrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values that the codes stand for, columns in the order of the inputs.

    Shapes: result [N, K]. In float32 the values of `quantize` are exact; another type rounds once.
    """
    steps = matrix.codes.float() - _by_column(matrix.zeros.float(), matrix)
    values = (steps * _by_column(matrix.scales, matrix)).to(dtype)
    if matrix.column_order is None:
        return values
    ordered = torch.empty_like(values)
    ordered[:, matrix.column_order] = values
    return ordered


def linear(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None = None) -> Tensor:
    """Return x times the matrix transposed, plus bias: computed in float32 (float64 for such x), rounded once.

    Shapes: x [T, K], bias [N]; result [T, N] in the type of x.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    product = x.to(wide) @ dequantize(matrix, wide).t()
    return (product if bias is None else product + bias.to(wide)).to(x.dtype)


def error_bound(matrix: QuantizedMatrix) -> Tensor:
    """Return the most by which a value of `quantize` may differ from its weight: half a step, and the rounding.

    Shapes: result [N, K].
    """
    return _by_column(matrix.scales, matrix) * (0.5 + _ROUNDING_STEPS)


def _by_column(values: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """Return values of groups [N, G] repeated for every column of theirs [N, K]."""
    return values.repeat_interleave(matrix.group_size, 1)[:, : matrix.shape[1]]
