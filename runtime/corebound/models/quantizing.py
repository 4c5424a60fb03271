"""Takes matrices row by row while they are read, into panels or, for the reference decoder, into what they mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from corebound.kernels.panel_format import Kind, PanelFormat, ScaleKind
from corebound.kernels.panels import PanelMatrix
from corebound.kernels.values import FileRows, fill_rows, load_rows
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
    """Takes rows of a checkpoint and stores them in panels, as bfloat16 or, by the format of the matrix, quantized."""

    matrix: PanelMatrix

    @property
    def memory(self) -> torch.Tensor:
        """The bytes of the panels, [bytes] uint8."""
        return self.matrix.memory

    def put(self, first_row: int, rows: torch.Tensor) -> None:
        """Store rows [n, inputs] from `first_row` on; several threads may."""
        load_rows(self.matrix, first_row, rows)

    def fill(self, first_row: int, source: FileRows, largest: float, scratch: torch.Tensor) -> int:
        """Store rows of a file, and return how many until one that cannot be read or is beyond `largest`.

        Shapes: `scratch` [bytes], overwritten.
        """
        return fill_rows(self.matrix, first_row, source, largest, scratch)


@dataclass(frozen=True)
class MeaningSink:
    """Takes rows and stores what the codes mean that they become, in the type of `target`."""

    target: torch.Tensor
    scheme: Scheme

    def put(self, first_row: int, rows: torch.Tensor) -> None:
        """Store rows [n, inputs] from `first_row` on."""
        quantized = quantize(rows.to(self.target.dtype), self.scheme)
        self.target[first_row : first_row + rows.shape[0]] = dequantize(quantized, self.target.dtype)


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
