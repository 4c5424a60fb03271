"""Quantizes matrices row by row while they are read, into panels or, for the reference decoder, into what they mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from corebound.kernels.panels import PanelMatrix
from corebound.quantization.reference import dequantize
from corebound.quantization.rtn import quantize
from corebound.quantization.scheme import Scheme


@dataclass(frozen=True)
class PanelSink:
    """Takes bfloat16 rows and stores their codes in panels."""

    matrix: PanelMatrix
    scheme: Scheme

    def put(self, first_row: int, rows: torch.Tensor) -> None:
        """Store rows [n, inputs] from `first_row` on."""
        quantized = quantize(rows, self.scheme)
        self.matrix.put_codes(first_row, quantized.codes, quantized.scales, quantized.zeros.float())


@dataclass(frozen=True)
class MeaningSink:
    """Takes bfloat16 rows and stores what their codes mean, rounded to the type of `target`."""

    target: torch.Tensor
    scheme: Scheme

    def put(self, first_row: int, rows: torch.Tensor) -> None:
        """Store rows [n, inputs] from `first_row` on."""
        self.target[first_row : first_row + rows.shape[0]] = dequantize(quantize(rows, self.scheme), self.target.dtype)
