"""Loads the two native libraries: libcorebound.so by ctypes, and the torch operators over it."""

from __future__ import annotations

import ctypes
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from corebound.errors import KernelError

LIBRARY_DIR = Path(__file__).parent / "lib"
# Written by the classic build only; see csrc/torch_ops/CMakeLists.txt.
_CLASSIC_ABI = "torch_abi.json"
OLDEST_STABLE_TORCH = (2, 10)


@dataclass(frozen=True, kw_only=True)
class TorchAbi:
    """Which torch the operators were built for: any from `version` on (stable), or `version` alone (classic)."""

    is_stable: bool
    version: tuple[int, int]

    def fits(self, torch_version: str) -> bool:
        """Return whether operators of this build load into a torch of that version."""
        match = re.match(r"(\d+)\.(\d+)", torch_version)
        if match is None:
            return False
        found = (int(match[1]), int(match[2]))
        return found >= self.version if self.is_stable else found == self.version

    def __str__(self) -> str:
        version = ".".join(map(str, self.version))
        return f"torch {version} or later" if self.is_stable else f"torch {version} and no other (the IPEX flavour)"


def torch_abi(library_dir: Path = LIBRARY_DIR) -> TorchAbi:
    """Return which torch the operators in `library_dir` were built for; torch itself is not looked at.

    Raises: KernelError when the file that says so is damaged.
    """
    path = library_dir / _CLASSIC_ABI
    if not path.is_file():
        return TorchAbi(is_stable=True, version=OLDEST_STABLE_TORCH)
    try:
        major, minor = json.loads(path.read_text(encoding="utf-8"))["torch"].split(".")
        return TorchAbi(is_stable=False, version=(int(major), int(minor)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelError(
            f"native operators: {path}: expected the torch they were built for, found {type(error).__name__}: {error}",
            hint="install Corebound again",
        ) from error


def core_library_path() -> Path:
    """Return where libcorebound.so is, or would be."""
    return LIBRARY_DIR / "libcorebound.so"


@functools.cache
def core_library() -> ctypes.CDLL:
    """Return libcorebound.so, which needs no torch.

    Raises: KernelError when it was not built or cannot be loaded.
    """
    return _load(core_library_path())


@functools.cache
def load_torch_ops() -> None:
    """Register the operators under `torch.ops.corebound`.

    Raises: KernelError when the library was not built or does not fit the installed torch.
    """
    import torch

    core_library()
    path = LIBRARY_DIR / "libcorebound_torch.so"
    _require(path)
    abi = torch_abi()
    # Asked before loading: a library that does not fit fails with a symbol's name, or worse, does not fail.
    if not abi.fits(torch.__version__):
        raise KernelError(
            f"native operators: {path} needs {abi}, found torch {torch.__version__}", hint=wrong_torch_hint(abi)
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise KernelError(
            f"native operators: {path} does not load with torch {torch.__version__}: {error}",
            hint="it was built for another machine or torch; rebuild with `make native`",
        ) from error


def wrong_torch_hint(abi: TorchAbi) -> str:
    """Return what to do where the operators of this build meet a torch that they do not fit."""
    if abi.is_stable:
        return (
            "`make deploy` (or `make setup` in a checkout) installs a torch that fits; only the IPEX flavour is built "
            "for an older one, see docs/ipex.md"
        )
    return "this build belongs to the IPEX flavour, in an environment of its own; deploy it again, see docs/ipex.md"


def _require(path: Path) -> None:
    if not path.is_file():
        raise KernelError(f"native library missing: {path}", hint="build it with `make native`")


def _load(path: Path) -> ctypes.CDLL:
    _require(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"native library: {path} does not load: {error}", hint="rebuild it: `make native`") from error
