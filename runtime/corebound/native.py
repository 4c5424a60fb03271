"""Loads the two native libraries: libcorebound.so by ctypes, and the torch operators over it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from corebound.errors import KernelError

LIBRARY_DIR = Path(__file__).parent / "lib"


@functools.cache
def core_library() -> ctypes.CDLL:
    """Return libcorebound.so, which needs no torch.

    Raises: KernelError when it was not built or cannot be loaded.
    """
    return _load(LIBRARY_DIR / "libcorebound.so")


@functools.cache
def load_torch_ops() -> None:
    """Register the operators under `torch.ops.corebound`.

    Raises: KernelError when the library was not built or does not fit the installed torch.
    """
    import torch

    core_library()
    path = LIBRARY_DIR / "libcorebound_torch.so"
    _require(path)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise KernelError(
            f"native operators: {path} does not load with torch {torch.__version__}: {error}",
            hint="torch 2.10 or later is needed; rebuild with `make native`",
        ) from error


def _require(path: Path) -> None:
    if not path.is_file():
        raise KernelError(f"native library missing: {path}", hint="build it with `make native`")


def _load(path: Path) -> ctypes.CDLL:
    _require(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"native library: {path} does not load: {error}", hint="rebuild it: `make native`") from error
