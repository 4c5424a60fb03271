"""Weight matrices in panels: the layout that the native decoder computes from, decode and prefill alike.

The layout is described in csrc/kernels/panel.h, sizes and structures are in panel_format.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch

from corebound import native
from corebound.errors import KernelError
from corebound.kernels.panel_format import (
    PANEL_OUTPUTS,
    READINGS,
    MatrixStruct,
    OutputStruct,
    PanelFormat,
    Reading,
    ScaleKind,
    matrix_struct,
)

Activation = Literal["none", "gelu_tanh", "silu_gated", "gelu_erf", "relu", "gelu_tanh_gated"]
ACTIVATIONS: tuple[Activation, ...] = ("none", "gelu_tanh", "silu_gated", "gelu_erf", "relu", "gelu_tanh_gated")


class _PackStruct(ctypes.Structure):
    _fields_ = [
        ("matrix", MatrixStruct),
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("first_row", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("stride", ctypes.c_int64),
    ]


class _UnpackStruct(ctypes.Structure):
    _fields_ = [
        ("matrix", MatrixStruct),
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("first_row", ctypes.c_int64),
        ("rows", ctypes.c_int64),
    ]


class PanelMatrix:
    """One weight matrix [outputs, inputs] in panels; rows are put in as they are read.

    `gated` matrices have all gate rows first and as many up rows after them; their product is half as wide.
    """

    def __init__(self, outputs: int, inputs: int, form: PanelFormat, *, gated: bool = False) -> None:
        if gated and outputs % 2:
            raise KernelError(f"panels: a gated matrix has as many gate as up rows, found {outputs} rows")
        self.outputs, self.inputs, self.form, self.gated = outputs, inputs, form, gated
        self.padded_inputs = form.padded_inputs(inputs)
        self.num_groups = self.padded_inputs // form.group_inputs(inputs)
        self.struct = matrix_struct(outputs, inputs, form, gated=gated)
        self.num_bytes = int(library().corebound_panel_matrix_bytes(ctypes.byref(self.struct)))
        self._memory: torch.Tensor | None = None
        self._lock = threading.Lock()

    @property
    def product_columns(self) -> int:
        """How wide a product is."""
        return self.outputs // 2 if self.gated else self.outputs

    @property
    def num_panels(self) -> int:
        """How many panels of 64 outputs there are."""
        return -(-self.outputs // PANEL_OUTPUTS)

    @property
    def memory(self) -> torch.Tensor:
        """The bytes of the panels, [num_bytes] uint8."""
        assert self._memory is not None, "place() comes first"
        return self._memory

    def place(self, memory: torch.Tensor) -> None:
        """Use `memory`, [num_bytes] uint8, all zeros and aligned to 64 bytes."""
        assert memory.numel() == self.num_bytes and memory.data_ptr() % 64 == 0
        self._memory = memory
        self.struct.data = memory.data_ptr()

    def put(self, first_row: int, rows: torch.Tensor) -> None:
        """Store rows of a bfloat16 matrix, [n, inputs]."""
        assert self.form.kind == "bfloat16" and rows.dtype == torch.bfloat16 and rows.is_contiguous()
        self._pack(first_row, rows, None, None)

    def put_codes(self, first_row: int, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> None:
        """Store quantised rows: value = (code - zero) * scale.

        Shapes: codes [n, inputs] uint8; scales and zeros [n, num_groups] float32. Without zeros the middle of the
        range (128, 8) is zero.
        """
        assert self.form.kind != "bfloat16" and codes.dtype == torch.uint8
        assert scales.shape == (codes.shape[0], self.num_groups), (scales.shape, codes.shape, self.num_groups)
        assert zeros is not None or not self.struct.asymmetric, "an asymmetric matrix has zeros"
        zeros = zeros.to(torch.float32).contiguous() if self.struct.asymmetric and zeros is not None else None
        self._pack(first_row, codes.contiguous(), scales.to(torch.float32).contiguous(), zeros)

    @contextlib.contextmanager
    def rows_locked(self, first_row: int, num_rows: int) -> Iterator[None]:
        """Enter when no other thread that has entered writes to a byte that these rows have a part of.

        A byte of an int4 panel is of two rows, so rows that begin or end within a panel share bytes with others.
        """
        shared = self.form.kind == "int4" and any(map(self._cuts_panel, (first_row, first_row + num_rows)))
        with self._lock if shared else contextlib.nullcontext():
            yield

    def _cuts_panel(self, row: int) -> bool:
        """Return whether the rows before and from `row` on have parts of one panel."""
        half = self.outputs // 2 if self.gated else self.outputs
        if row in (0, half, self.outputs):
            return False
        return row % half % (PANEL_OUTPUTS // 2 if self.gated else PANEL_OUTPUTS) != 0

    def rows(
        self, first_row: int, num_rows: int, panels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return rows as they were put in: values, and for codes their scales and, if asymmetric, their zeros.

        `panels` are the bytes of the panels that `panels_of` names, where the matrix has no memory of its own.

        Shapes: as put and put_codes take them.
        """
        struct = MatrixStruct.from_buffer_copy(self.struct)
        if panels is not None:
            first = self.panels_of(first_row, num_rows).start
            assert panels.numel() == len(self.panels_of(first_row, num_rows)) * self.panel_bytes
            struct.data = panels.data_ptr() - first * self.panel_bytes
        plain, groups = self.form.kind == "bfloat16", (num_rows, self.num_groups)
        values = torch.empty((num_rows, self.inputs), dtype=torch.bfloat16 if plain else torch.uint8)
        scales = None if plain else torch.empty(groups)
        zeros = torch.empty(groups) if self.struct.asymmetric else None
        what = _UnpackStruct(
            matrix=struct,
            values=values.data_ptr(),
            scales=None if scales is None else scales.data_ptr(),
            zeros=None if zeros is None else zeros.data_ptr(),
            first_row=first_row,
            rows=num_rows,
        )
        library().corebound_panel_unpack(ctypes.byref(what))
        return values, scales, zeros

    def panels_of(self, first_row: int, num_rows: int) -> range:
        """Return the panels that hold parts of rows; of a gated matrix all rows are gate or all are up."""
        half, width = (self.outputs // 2, PANEL_OUTPUTS // 2) if self.gated else (self.outputs, PANEL_OUTPUTS)
        first, last = first_row % half, (first_row + num_rows - 1) % half
        assert num_rows > 0 and last - first == num_rows - 1, "gate and up rows are apart"
        return range(first // width, last // width + 1)

    @property
    def panel_bytes(self) -> int:
        """How many bytes a panel has."""
        return self.num_bytes // self.num_panels

    def row(self, index: int) -> torch.Tensor:
        """Return a row of a bfloat16 matrix, [inputs]."""
        out = torch.empty(self.inputs, dtype=torch.bfloat16)
        library().corebound_panel_unpack_row(ctypes.byref(self.struct), index, out.data_ptr())
        return out

    def bias(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Return a bias in the order of the panels, padded to whole ones.

        Shapes: [outputs] -> [num_panels * 64] bfloat16.
        """
        if bias is None:
            return None
        padded = torch.zeros(self.num_panels * PANEL_OUTPUTS, dtype=torch.bfloat16)
        if self.gated:
            half, lanes = self.outputs // 2, PANEL_OUTPUTS // 2
            panels = padded.view(self.num_panels, 2, lanes)
            for part in range(2):
                wide = torch.zeros(self.num_panels * lanes, dtype=torch.bfloat16)
                wide[:half] = bias[part * half : (part + 1) * half]
                panels[:, part] = wide.view(self.num_panels, lanes)
        else:
            padded[: self.outputs] = bias
        return padded

    def multiply(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: Activation = "none",
        reading: Reading = "at_once",
    ) -> torch.Tensor:
        """Return activation(x W^T + bias) by the active variant, on this thread, which reads weights that way.

        Shapes: x [n, inputs] bfloat16; result [n, product_columns], float32 where there is no activation.
        """
        rows = x.shape[0]
        padded = torch.zeros((rows, self.padded_inputs), dtype=torch.bfloat16)
        padded[:, : self.inputs] = x
        in_order = self.bias(bias)
        columns = self.num_panels * (PANEL_OUTPUTS // 2 if self.gated else PANEL_OUTPUTS)
        plain = activation == "none"
        out = torch.empty((rows, self.outputs if plain else columns), dtype=torch.float32 if plain else torch.bfloat16)
        how = OutputStruct(
            y=None if plain else out.data_ptr(),
            logits=out.data_ptr() if plain else None,
            bias=None if in_order is None else in_order.data_ptr(),
            stride=out.shape[1],
            activation=ACTIVATIONS.index(activation),
        )
        library().corebound_panel_multiply(
            ctypes.byref(self.struct),
            padded.data_ptr(),
            rows,
            self.padded_inputs,
            ctypes.byref(how),
            READINGS.index(reading),
        )
        return out[:, : self.product_columns]

    def _pack(
        self, first_row: int, values: torch.Tensor, scales: torch.Tensor | None, zeros: torch.Tensor | None
    ) -> None:
        assert self._memory is not None, "place() comes first"
        assert values.shape[1] == self.inputs and first_row + values.shape[0] <= self.outputs
        what = _PackStruct(
            matrix=self.struct,
            values=values.data_ptr(),
            scales=None if scales is None else scales.data_ptr(),
            zeros=None if zeros is None else zeros.data_ptr(),
            first_row=first_row,
            rows=values.shape[0],
            stride=values.shape[1],
        )
        with self.rows_locked(first_row, values.shape[0]):
            library().corebound_panel_pack(ctypes.byref(what))


def scale_kind_for(scales: torch.Tensor) -> ScaleKind:
    """Return the narrowest kind that holds every one of `scales`, of any shape, exactly."""
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        if torch.equal(scales.to(dtype).to(torch.float32), scales):
            return name  # type: ignore[return-value]  # the loop's strings are two of the three
    return "float32"


def with_scales_of(form: PanelFormat, scales: torch.Tensor) -> PanelFormat:
    """Return the format with scales stored so that none of `scales`, of any shape, changes."""
    return replace(form, scale_kind=scale_kind_for(scales))


@functools.cache
def library() -> Any:
    """Return libcorebound.so with the argument types of csrc/decoder/{decoder,panel}_api.cpp.

    Raises: KernelError when it was not built.
    """
    lib = native.core_library()
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "panel_matrix_bytes": (number, [pointer]),
        "panel_pack": (None, [pointer]),
        "panel_unpack": (None, [pointer]),
        "panel_unpack_row": (None, [pointer, number, pointer]),
        "panel_load": (None, [pointer, pointer, number]),
        "panel_fill": (number, [pointer]),
        "panel_largest": (ctypes.c_float, [pointer]),
        "panel_to_bfloat16": (None, [pointer, pointer]),
        "panel_multiply": (None, [pointer, pointer, number, number, pointer, ctypes.c_int]),
        "decoder_create": (pointer, [pointer, pointer, ctypes.c_int]),
        "decoder_run": (ctypes.c_int, [pointer, pointer]),
        "decoder_run_greedily": (ctypes.c_int, [pointer, pointer, number, pointer, pointer, pointer]),
        "decoder_time_readings": (ctypes.c_int, [pointer, pointer]),
        "decoder_read_as": (None, [pointer, ctypes.c_int]),
        "decoder_destroy": (None, [pointer]),
        "decoder_error": (ctypes.c_char_p, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, f"corebound_{name}")
        function.restype, function.argtypes = result, arguments
    return lib
