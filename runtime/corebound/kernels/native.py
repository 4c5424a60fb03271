"""The native operators: loads them, applies COREBOUND_ISA, and reports what they offer."""

from __future__ import annotations

from corebound.kernels.table import NativeSupport


def support(isa: str | None) -> NativeSupport:
    """Return what the native libraries offer, after forcing the variant `isa` if one is named."""
    del isa
    return NativeSupport(problem="the native kernels are not built")
