"""Questions to the running system that change nothing in it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import resource
import shutil
from pathlib import Path

from corebound import native, native_ccl
from corebound.accelerator.extensions import extensions
from corebound.errors import KernelError

_SYS_SET_MEMPOLICY = 238
_SYS_GET_MEMPOLICY = 239
_MPOL_DEFAULT = 0


def memory_policy_errno() -> int:
    """Return 0 if this process may read and set its memory policy, else the error number.

    The default policy is set only where the default is in force, so nothing changes.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    mode = ctypes.c_int(-1)
    if libc.syscall(_SYS_GET_MEMPOLICY, ctypes.byref(mode), None, 0, None, 0) != 0:
        return ctypes.get_errno()
    if mode.value == _MPOL_DEFAULT and libc.syscall(_SYS_SET_MEMPOLICY, _MPOL_DEFAULT, None, 0) != 0:
        return ctypes.get_errno()
    return 0


def program(name: str) -> str | None:
    """Return the path of a program, None when it is not installed."""
    return shutil.which(name)


def loads(library: str) -> bool:
    """Return whether the dynamic linker finds a library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def accelerators() -> dict[str, str]:
    """Return the installed accelerator extensions and what they come from; none of them is imported."""
    return {extension.name: extension.origin for extension in extensions()}


def package_version(name: str) -> str | None:
    """Return the installed version of a Python package without importing it, None when there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def open_files() -> tuple[int, int]:
    """Return the soft and hard limit of open files; -1 means unlimited."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def core_library() -> str:
    """Return the path of the core library after loading it. Raises: KernelError."""
    native.core_library()
    return str(_library_dir() / "libcorebound.so")


def torch_operators() -> str:
    """Return the path of the torch operators, which only torch can load. Raises: KernelError when missing."""
    path = _library_dir() / "libcorebound_torch.so"
    if not path.is_file():
        raise KernelError(f"native operators missing: {path}", hint="build them with `make native`")
    return str(path)


def _library_dir() -> Path:
    return Path(native.__file__).parent / "lib"


def ccl() -> str:
    """Return where the binding to oneCCL is; all that it needs is there.

    Raises: CclUnavailableError naming what is missing.
    """
    return native_ccl.require()[-1]
