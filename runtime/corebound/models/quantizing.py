"""Takes matrices row by row while they are read, into panels or, for the reference decoder, into what they mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from corebound.kernels.panel_format import Kind, PanelFormat, ScaleKind
from corebound.kernels.panels import PanelMatrix
from corebound.quantization.matrix import QuantizedMatrix
from corebound.quantization.reference import dequantize
from corebound.quantization.rtn import quantize
from corebound.quantization.scheme import Scheme
from corebound.sharding.packed_stream import PackedField

_SCALE_KINDS: dict[torch.dtype, ScaleKind] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def packed_panel_format(field: PackedField, scheme: Scheme) -> PanelFormat:
    """Return how packed matrices are stored: as they are, or plain where their groups are of inputs that lie apart."""
    if not field.in_order:
        return PanelFormat()
    kind: Kind = "int8" if scheme.bits == 8 else "int4"
    return PanelFormat(
        kind=kind,
        group_size=scheme.group_size,
        asymmetric=not field.symmetric,
        scale_kind=_SCALE_KINDS[field.scale_dtype],
    )


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


@dataclass(frozen=True)
class CodePanelSink:
    """Takes the codes of packed matrices and stores them in panels, or what they mean in panels of bfloat16."""

    matrix: PanelMatrix

    def put(self, first_row: int, rows: QuantizedMatrix) -> None:
        """Store rows from `first_row` on."""
        if self.matrix.form.kind == "bfloat16":
            self.matrix.put(first_row, dequantize(rows, torch.bfloat16))
        else:
            self.matrix.put_codes(first_row, rows.codes, rows.scales, rows.zeros.float())


@dataclass(frozen=True)
class CodeMeaningSink:
    """Takes the codes of packed matrices and stores what they mean, rounded to the type of `target`."""

    target: torch.Tensor

    def put(self, first_row: int, rows: QuantizedMatrix) -> None:
        """Store rows from `first_row` on."""
        self.target[first_row : first_row + rows.shape[0]] = dequantize(rows, self.target.dtype)
