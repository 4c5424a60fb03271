"""Runs native tests once for every instruction-set variant that this machine has."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from corebound import native as libraries
from corebound.errors import KernelError

VARIANTS = ("generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")


def _runnable() -> dict[str, list[str]]:
    """Variant -> what this machine lacks to run it; empty when the library is not built."""
    import ctypes

    try:
        library = libraries.core_library()
    except KernelError:
        return {}
    library.corebound_isa_report.restype = ctypes.c_char_p
    return {row["name"]: row["missing"] for row in json.loads(library.corebound_isa_report())["variants"]}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """The forced variant; the test fails first if another one is active."""
    runnable = _runnable()
    if not runnable:
        pytest.skip("this machine lacks the native library, to be had with make native")
    if runnable[request.param]:
        pytest.skip(f"this machine lacks {', '.join(runnable[request.param])}")
    from corebound.kernels import native

    native.load()
    native.force_isa(request.param)
    assert {row["active"] for row in native.native_table()} == {request.param}
    yield str(request.param)
    native.force_isa(next(name for name in reversed(VARIANTS) if not runnable[name]))
