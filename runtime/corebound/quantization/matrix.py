"""A quantized matrix before any kernel has arranged it: codes, scales and zeros in plain order.

Letters: N outputs (rows), K inputs (columns), G groups of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corebound.errors import KernelError


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedMatrix:
    """Whole numbers that stand for weights: value[n, k] = (codes[n, k] - zeros[n, g]) * scales[n, g], g = k // group.

    Shapes: `codes` [N, K] uint8, 0 to 2**bits - 1; `scales` [N, G] float32; `zeros` [N, G] uint8. `group_size` is the
    number of inputs of one group; the last group may be short. `column_order` [K] int64, where present, names for each
    column of the codes the input it belongs to: the product is that with inputs[:, column_order].
    """

    bits: int
    group_size: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor
    column_order: Tensor | None = None

    def __post_init__(self) -> None:
        num_outputs, num_inputs = self.codes.shape
        groups = (num_outputs, -(-num_inputs // self.group_size))
        assert self.codes.dtype == self.zeros.dtype == torch.uint8, (self.codes.dtype, self.zeros.dtype)
        assert self.scales.dtype == torch.float32, self.scales.dtype
        assert self.scales.shape == self.zeros.shape == groups, (self.scales.shape, self.zeros.shape, groups)

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of outputs and inputs."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def symmetric(self) -> bool:
        """Return whether every zero is the middle of the codes, so that a kernel needs none."""
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def has_scales_of(self, dtype: torch.dtype) -> bool:
        """Return whether a kernel can keep the scales in `dtype` without changing any.

        Those of quantize fit bfloat16; those of AWQ and GPTQ checkpoints are float16.
        """
        return bool((self.scales.to(dtype).float() == self.scales).all())


def concatenate(matrices: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Return the matrices one below the other, as separate q, k and v become one.

    Raises: KernelError for matrices that differ in width, group or order of columns.
    """
    first = matrices[0]
    for other in matrices[1:]:
        if (other.bits, other.group_size, other.shape[1]) != (first.bits, first.group_size, first.shape[1]):
            raise KernelError(
                f"quantized matrices of one product differ: {_described(first)} and {_described(other)}",
            )
        if not _same_order(first.column_order, other.column_order):
            raise KernelError("quantized matrices of one product read their inputs in different orders")
    return QuantizedMatrix(
        bits=first.bits,
        group_size=first.group_size,
        codes=torch.cat([matrix.codes for matrix in matrices]),
        scales=torch.cat([matrix.scales for matrix in matrices]),
        zeros=torch.cat([matrix.zeros for matrix in matrices]),
        column_order=first.column_order,
    )


def _described(matrix: QuantizedMatrix) -> str:
    return f"{matrix.bits} bits, groups of {matrix.group_size}, {matrix.shape[1]} inputs"


def _same_order(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
