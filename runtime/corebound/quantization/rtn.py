"""Rounding to nearest: the quantization that needs nothing but the weights.

The step of a group is the smallest that reaches its outermost weights, rounded up to a bfloat16. Rounded up, because
then no weight is further from its code than half a step; to a bfloat16, because a kernel may keep it as one. A code
times such a step has at most 16 significant bits, so float32 holds every value exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corebound.errors import KernelError
from corebound.quantization.matrix import QuantizedMatrix
from corebound.quantization.scheme import Scheme

# 1 MiB of float32 stays in the second-level cache from the first pass over a chunk to the last.
_CHUNK_ELEMENTS = 1 << 18

# The step of groups of zeros, and of weights too small for any sum to notice: the smallest normal number.
_SMALLEST_SCALE = 2.0**-126


def quantize(weight: Tensor, scheme: Scheme) -> QuantizedMatrix:
    """Return a matrix with each weight rounded to the nearest code of its group.

    Each row stands alone: quantizing parts of the rows gives those parts of the whole.

    Shapes: weight [N, K] of any floating-point type.

    Raises: KernelError for weights that are not finite.
    """
    num_outputs, num_inputs = weight.shape
    group_size = scheme.group_size or max(1, num_inputs)
    num_groups = scheme.num_groups(num_inputs) if num_inputs else 0
    matrix = QuantizedMatrix(
        bits=scheme.bits,
        group_size=group_size,
        codes=torch.empty(num_outputs, num_inputs, dtype=torch.uint8),
        scales=torch.empty(num_outputs, num_groups),
        zeros=torch.empty(num_outputs, num_groups, dtype=torch.uint8),
    )
    whole = num_inputs - num_inputs % group_size
    for columns, groups in ((slice(0, whole), slice(0, whole // group_size)), (slice(whole, None), slice(-1, None))):
        part = weight[:, columns]
        if part.numel():
            size = min(group_size, part.shape[1])
            targets = (matrix.codes[:, columns], matrix.scales[:, groups], matrix.zeros[:, groups])
            _quantize_groups(part, columns.start, size, scheme, *targets)
    return matrix


def _quantize_groups(
    weight: Tensor, first_column: int, size: int, scheme: Scheme, codes: Tensor, scales: Tensor, zeros: Tensor
) -> None:
    """Fill codes, scales and zeros from the columns of a matrix from `first_column` on, whole groups of `size`."""
    step = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    # One buffer for all chunks: a new one each time would be new pages each time.
    buffer = torch.empty(min(step, weight.shape[0]), weight.shape[1] // size, size)
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        part = weight[rows].unflatten(1, (-1, size))
        chunk = buffer[: part.shape[0]].copy_(part)
        low, high = chunk.amin(2), chunk.amax(2)
        if not bool(((high - low).abs() < torch.inf).all()):
            # A NaN makes both ends NaN, and infinite ends an infinite difference.
            _refuse(weight[rows], start, first_column)
        scale, zero = _scales_and_zeros(low, high, scheme)
        scales[rows], zeros[rows] = scale, zero
        chunk.div_(scale.unsqueeze(2)).round_().add_(zero.unsqueeze(2)).clamp_(0, scheme.largest_code)
        codes[rows] = chunk.flatten(1)


def _scales_and_zeros(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero of each group, both as float32, from its smallest and largest weight."""
    if scheme.symmetric:
        # All codes are used: the outermost weight is half a step beyond the last code, or on the edge of the first.
        scale = torch.maximum(high, -low).mul_(2.0 / scheme.largest_code)
        return _rounded_up(scale), torch.full_like(scale, scheme.middle_code)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)  # so that 0 has a code of its own
    scale = _rounded_up((high - low).mul_(1.0 / scheme.largest_code))
    return scale, torch.round(-low / scale)


def _rounded_up(scale: Tensor) -> Tensor:
    """Return positive float32 values rounded up to bfloat16, which is the upper half of a float32."""
    raised = scale.clamp(min=_SMALLEST_SCALE).view(torch.int32) + 0xFFFF
    return raised.bitwise_and_(-0x10000).view(torch.float32)


def _refuse(rows: Tensor, first_row: int, first_column: int) -> None:
    wrong = (~rows.isfinite()).nonzero()
    if wrong.numel() == 0:
        largest = float(rows.abs().max())
        raise KernelError(f"quantize: the range of a group is no float32: found weights up to {largest:g}")
    row, column = wrong[0].tolist()
    found = float(rows[row, column])
    place = f"row {first_row + row}, column {first_column + column}"
    raise KernelError(f"quantize: expected finite weights, found {found:g} in {place}")
