"""How large a weight matrix is in panels, and the structures that describe one to native code. Needs no torch.

The layout is described in csrc/kernels/panel.h; the structures here follow it field for field.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

from corebound.errors import KernelError

PANEL_OUTPUTS = 64
INPUT_UNIT = 32
MAX_BLOCK_INPUTS = 128  # kernels::max_block_inputs
Kind = Literal["bfloat16", "int8", "int4"]
Reading = Literal["at_once", "paced", "one_stream"]
# As csrc/kernels/panel.h numbers them.
READINGS: tuple[Reading, ...] = ("at_once", "paced", "one_stream")
ScaleKind = Literal["float32", "bfloat16", "float16"]
KINDS: tuple[Kind, ...] = ("bfloat16", "int8", "int4")
SCALE_KINDS: tuple[ScaleKind, ...] = ("float32", "bfloat16", "float16")
_INPUT_BYTES = {"bfloat16": 128, "int8": 64, "int4": 32}  # of one input for the outputs of a panel


class MatrixStruct(ctypes.Structure):
    """kernels::PanelMatrix."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("padded_inputs", ctypes.c_int64),
        ("group_inputs", ctypes.c_int64),
        ("kind", ctypes.c_int),
        ("scale_kind", ctypes.c_int),
        ("asymmetric", ctypes.c_bool),
        ("gated", ctypes.c_bool),
    ]


class OutputStruct(ctypes.Structure):
    """kernels::PanelOutput."""

    _fields_ = [
        ("y", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("activation", ctypes.c_int),
        ("best", ctypes.c_void_p),
    ]


@dataclass(frozen=True, kw_only=True)
class PanelFormat:
    """What each weight is stored as.

    `group_size` inputs share a scale (None: all of a row); it counts for the quantised kinds only, where it must be a
    multiple of 32. `asymmetric` groups have a zero point each.
    """

    kind: Kind = "bfloat16"
    group_size: int | None = None
    asymmetric: bool = False
    scale_kind: ScaleKind = "bfloat16"

    def __post_init__(self) -> None:
        if self.group_size is not None and not valid_group(self.group_size):
            raise KernelError(
                f"panels: expected groups of a multiple of {INPUT_UNIT} inputs up to {MAX_BLOCK_INPUTS}, or a multiple "
                f"of that, found {self.group_size}"
            )

    def padded_inputs(self, inputs: int) -> int:
        """Return how many inputs are stored where a matrix has `inputs`."""
        unit = self.group_size if self.kind != "bfloat16" and self.group_size else INPUT_UNIT
        return -(-inputs // unit) * unit

    def group_inputs(self, inputs: int) -> int:
        """Return how many stored inputs share a scale; all of them where there is one group."""
        return self.group_size if self.kind != "bfloat16" and self.group_size else self.padded_inputs(inputs)

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        """Return the bytes of a matrix [outputs, inputs] in panels."""
        padded = self.padded_inputs(inputs)
        panel = padded * _INPUT_BYTES[self.kind]
        if self.kind != "bfloat16":
            of_group = PANEL_OUTPUTS * ((4 if self.scale_kind == "float32" else 2) + self.asymmetric)
            panel += padded // self.group_inputs(inputs) * of_group
        return -(-outputs // PANEL_OUTPUTS) * panel


def valid_group(size: int) -> bool:
    """Return whether so many inputs can share a scale."""
    unit = INPUT_UNIT if size <= MAX_BLOCK_INPUTS else MAX_BLOCK_INPUTS
    return size > 0 and size % unit == 0


def matrix_struct(outputs: int, inputs: int, form: PanelFormat, *, gated: bool = False) -> MatrixStruct:
    """Return the description of a matrix whose memory is still to be named."""
    return MatrixStruct(
        data=None,
        outputs=outputs,
        inputs=inputs,
        padded_inputs=form.padded_inputs(inputs),
        group_inputs=form.group_inputs(inputs),
        kind=KINDS.index(form.kind),
        scale_kind=SCALE_KINDS.index(form.scale_kind),
        asymmetric=form.asymmetric and form.kind != "bfloat16",
        gated=gated,
    )
