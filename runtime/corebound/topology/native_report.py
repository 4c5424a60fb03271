"""Asks the core native library for facts: JSON from its C functions, without torch."""

from __future__ import annotations

import ctypes
import json
from typing import Any

from corebound import native
from corebound.errors import KernelError

_ERROR_BYTES = 1024


def native_isa_report() -> dict[str, Any]:
    """Return what csrc/isa reports. Raises: KernelError when the library is missing or cannot say."""
    report = _json("corebound_isa_report")
    if not isinstance(report, dict):
        raise KernelError(f"corebound_isa_report: expected a JSON object, found {type(report).__name__}")
    return report


def native_kernel_table() -> list[dict[str, Any]]:
    """Return what csrc/kernels offers, a row for each op. Raises: KernelError as `native_isa_report`."""
    table = _json("corebound_kernel_table")
    if not isinstance(table, list):
        raise KernelError(f"corebound_kernel_table: expected a JSON array, found {type(table).__name__}")
    return table


def native_active_isa(force: str | None = None) -> str:
    """Return the variant that native kernels use in this process, after forcing `force` if one is named.

    Raises: KernelError when `force` is unknown or cannot run here, or the library is missing.
    """
    if force is not None:
        function = _function("corebound_isa_force")
        function.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
        function.restype = ctypes.c_int
        problem = ctypes.create_string_buffer(_ERROR_BYTES)
        if function(force.encode(), problem, _ERROR_BYTES) != 0:
            raise KernelError(problem.value.decode(errors="replace"))
    return _text("corebound_isa_active")


def _json(symbol: str) -> Any:
    return json.loads(_text(symbol))


def _text(symbol: str) -> str:
    function = _function(symbol)
    function.argtypes = []
    function.restype = ctypes.c_char_p
    text: bytes | None = function()
    if text is None:
        raise KernelError(f"native library: {symbol} returned nothing")
    return text.decode(errors="replace")


def _function(symbol: str) -> Any:
    try:
        return getattr(native.core_library(), symbol)
    except AttributeError:
        raise KernelError(f"native library has no {symbol}", hint="rebuild it: `make native`") from None
