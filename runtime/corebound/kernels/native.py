"""The native operators: loads them, applies COREBOUND_ISA, reports what they offer, and calls them.

The functions have the signatures of `ops.py`. A wrong argument is a KernelError with the operator's own message.
"""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from corebound import native as libraries
from corebound.errors import KernelError
from corebound.kernels import fake, reference
from corebound.kernels.selection import NativeSupport

# More rows than this are arithmetic, not memory traffic, and belong to torch. Equal to max_linear_rows of kernels.h.
MAX_LINEAR_ROWS = 8

_NARROW = (torch.bfloat16, torch.float16)
_LAYOUTS = {"per_head": True, "stacked": False}
_GELU_IS_EXACT = {"tanh": False, "none": True}


def support(isa: str | None) -> NativeSupport:
    """Return what the native libraries offer, after forcing the variant `isa` if one is named.

    Raises: KernelError when `isa` cannot run here, or no native library is there to run it.
    """
    try:
        libraries.core_library()
        load()
    except KernelError as error:
        if isa is not None:
            raise
        return NativeSupport(problem=error.message)
    if isa is None:
        return NativeSupport(variants=_active_variants())
    force_isa(isa)
    return NativeSupport(variants=_active_variants(), reason=f"COREBOUND_ISA={isa}")


def native_table() -> list[dict[str, Any]]:
    """Return every native operator with its variants, their dtypes, and the active one.

    Raises: KernelError when the native library is missing.
    """
    library = libraries.core_library()
    library.corebound_kernel_table.restype = ctypes.c_char_p
    rows: list[dict[str, Any]] = json.loads(library.corebound_kernel_table())
    return rows


def force_isa(isa: str) -> None:
    """Make `isa` the variant that all native kernels of this process use.

    Raises: KernelError naming the variants that can run when `isa` cannot.
    """
    error = ctypes.create_string_buffer(512)
    if libraries.core_library().corebound_isa_force(isa.encode(), error, len(error)) != 0:
        raise KernelError(error.value.decode(), hint="unset COREBOUND_ISA to take the best variant")


def _active_variants() -> dict[str, str]:
    return {row["op"]: row["active"] for row in native_table()}


@functools.cache
def load() -> None:
    """Register the operators with torch, and their shapes for torch.compile.

    Raises: KernelError when they are missing or do not fit the installed torch.
    """
    libraries.load_torch_ops()
    fake.register()


def _checked(op: str) -> Callable[..., Any]:
    """Return a caller of the operator that raises KernelError in place of torch's RuntimeError."""
    load()
    native = getattr(torch.ops.corebound, op).default

    def call(*arguments: Any) -> Any:
        try:
            return native(*arguments)
        except RuntimeError as error:
            raise KernelError(str(error)) from error

    return call


def __getattr__(name: str) -> Callable[..., Any]:
    # Operators whose arguments pass through unchanged; the others are functions below.
    from corebound.kernels.selection import OPS

    if name not in OPS:
        raise AttributeError(name)
    return _adapters[name]() if name in _adapters else _checked(name)


def _split_qkv() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    native = _checked("split_qkv")

    def split_qkv(
        qkv: Tensor, layout: str, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        per_head = _LAYOUTS.get(layout)
        if per_head is None:
            raise KernelError(f"split_qkv: unknown layout {layout!r}, expected per_head or stacked")
        result: tuple[Tensor, Tensor, Tensor] = native(qkv, per_head, num_heads, num_kv_heads, head_dim)
        return result

    return split_qkv


def _gelu() -> Callable[..., Tensor]:
    native = _checked("gelu")

    def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
        exact = _GELU_IS_EXACT.get(approximate)
        if exact is None:
            raise KernelError(f"gelu: unknown approximation {approximate!r}, expected tanh or none")
        result: Tensor = native(x, exact)
        return result

    return gelu


def _linear() -> Callable[..., Tensor]:
    native = _checked("linear")
    many_rows = torch.nn.functional.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result: Tensor = (native if x.shape[0] <= MAX_LINEAR_ROWS else many_rows)(x, weight, bias)
        return result

    return linear


def _wide_weights(op: str) -> Callable[..., Any]:
    """Return a caller of an RMS norm that has the reference compute with weights of more precision than the rows.

    Only sums such as Gemma's 1 + w are kept so; the native operators have one type for both.
    """
    native, plain = _checked(op), getattr(reference, op)

    def call(x: Tensor, *others: Any) -> Any:
        weight = others[-2]
        is_wide = weight.dtype == torch.float32 and x.dtype in _NARROW
        return (plain if is_wide else native)(x, *others)

    return call


_adapters: dict[str, Callable[[], Callable[..., Any]]] = {
    "split_qkv": _split_qkv,
    "gelu": _gelu,
    "linear": _linear,
    "rms_norm": functools.partial(_wide_weights, "rms_norm"),
    "add_rms_norm": functools.partial(_wide_weights, "add_rms_norm"),
}
