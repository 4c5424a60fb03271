"""Weights in panels for layers outside a decoder: packed once, multiplied by a torch operator, read back when asked.

The layout is described in csrc/kernels/panel.h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corebound.kernels.panel_format import KINDS, PANEL_OUTPUTS, SCALE_KINDS, Kind, PanelFormat
from corebound.kernels.panels import ACTIVATIONS, Activation, PanelMatrix, with_scales_of
from corebound.quantization.matrix import QuantizedMatrix

_SCALE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class PackedShape:
    """What a stretch of panels holds: a matrix [outputs, inputs]; gated ones have all gate rows, then all up rows."""

    outputs: int
    inputs: int
    form: PanelFormat
    gated: bool = False

    def numbers(self, activation: Activation = "none") -> tuple[int | bool, ...]:
        """Return how the operator is told of the matrix and what becomes of the product."""
        form = self.form
        asymmetric = form.asymmetric and form.kind != "bfloat16"
        scale_kind, group_inputs = SCALE_KINDS.index(form.scale_kind), form.group_inputs(self.inputs)
        kind, function = KINDS.index(form.kind), ACTIVATIONS.index(activation)
        return self.outputs, self.inputs, kind, group_inputs, scale_kind, asymmetric, self.gated, function


def pack(weight: Tensor, *, gated: bool = False) -> tuple[PackedShape, Tensor]:
    """Return a bfloat16 matrix [N, K] in panels, [bytes] uint8.

    Raises: KernelError for an odd number of rows where `gated`.
    """
    shape = PackedShape(weight.shape[0], weight.shape[1], PanelFormat(), gated)
    matrix = _placed(shape)
    matrix.put(0, weight.contiguous())
    return shape, matrix.memory


def pack_codes(matrix: QuantizedMatrix, group_size: int | None, *, gated: bool = False) -> tuple[PackedShape, Tensor]:
    """Return a quantized matrix [N, K] in panels, [bytes] uint8; `group_size` None means one group for each output.

    Raises: KernelError for an odd number of rows where `gated`.
    """
    kind: Kind = "int8" if matrix.bits == 8 else "int4"
    form = PanelFormat(kind=kind, group_size=group_size, asymmetric=not matrix.symmetric)
    shape = PackedShape(*matrix.shape, with_scales_of(form, matrix.scales), gated)
    panels = _placed(shape)
    panels.put_codes(0, matrix.codes, matrix.scales, matrix.zeros.float())
    return shape, panels.memory


def packed_bias(shape: PackedShape, bias: Tensor | None) -> Tensor | None:
    """Return a bias [N] in the order of the panels, bfloat16 and padded to whole ones."""
    return PanelMatrix(shape.outputs, shape.inputs, shape.form, gated=shape.gated).bias(bias)


def packed_linear(x: Tensor, panels: Tensor, bias: Tensor | None, numbers: tuple[int | bool, ...]) -> Tensor:
    """Return activation(x W^T + bias) of the matrix and the activation that `PackedShape.numbers` describe.

    Shapes: x [T, K] bfloat16; `bias` as packed_bias returns it; result [T, N] bfloat16, half as wide where gated.
    """
    result: Tensor = torch.ops.corebound.panel_linear(x, panels, bias, *numbers)
    return result


def unpack(panels: Tensor, shape: PackedShape) -> Tensor:
    """Return the values that panels stand for, float32 [N, K]; gated ones with all gate rows first, as they came."""
    form = shape.form
    padded = form.padded_inputs(shape.inputs)
    num_panels = -(-shape.outputs // PANEL_OUTPUTS)
    if form.kind == "bfloat16":
        pairs = panels.view(torch.bfloat16).view(num_panels, padded // 2, PANEL_OUTPUTS, 2)
        rows = pairs.transpose(1, 2).reshape(num_panels * PANEL_OUTPUTS, padded).float()
    else:
        rows = _codes_and_scales(panels, form, form.group_inputs(shape.inputs), num_panels, padded)
    if shape.gated:
        half = PANEL_OUTPUTS // 2
        rows = rows.view(num_panels, 2, half, padded).transpose(0, 1).reshape(2, num_panels * half, padded)
        return rows[:, : shape.outputs // 2, : shape.inputs].reshape(shape.outputs, shape.inputs).contiguous()
    return rows[: shape.outputs, : shape.inputs].contiguous()


def _codes_and_scales(panels: Tensor, form: PanelFormat, group: int, num_panels: int, padded: int) -> Tensor:
    code_bytes = group * PANEL_OUTPUTS * (1 if form.kind == "int8" else 0.5)
    scale_dtype = _SCALE_DTYPES[form.scale_kind]
    groups = panels.view(num_panels, padded // group, -1)
    codes, rest = groups[..., : int(code_bytes)], groups[..., int(code_bytes) :]
    if form.kind == "int8":
        steps = codes.reshape(*codes.shape[:2], group // 4, PANEL_OUTPUTS, 4)
    else:
        halves = codes.reshape(*codes.shape[:2], group // 4, 2, 16, 4)
        steps = torch.stack((halves & 0xF, halves >> 4), dim=4).flatten(3, 5)
    # To [panel, output, group, input].
    steps = steps.permute(0, 3, 1, 2, 4).flatten(3).float()
    scale_bytes = PANEL_OUTPUTS * scale_dtype.itemsize
    scales = rest[..., :scale_bytes].contiguous().view(scale_dtype).float()
    middle = 128.0 if form.kind == "int8" else 8.0
    zeros = rest[..., scale_bytes:].float() if form.asymmetric else torch.full_like(scales, middle)
    by_output = scales.transpose(1, 2).unsqueeze(3), zeros.transpose(1, 2).unsqueeze(3)
    return ((steps - by_output[1]) * by_output[0]).reshape(num_panels * PANEL_OUTPUTS, padded)


def _placed(shape: PackedShape) -> PanelMatrix:
    matrix = PanelMatrix(shape.outputs, shape.inputs, shape.form, gated=shape.gated)
    matrix.place(torch.zeros(matrix.num_bytes, dtype=torch.uint8))
    return matrix
