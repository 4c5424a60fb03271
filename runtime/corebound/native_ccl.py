"""Loads libcorebound_ccl.so, our binding to oneCCL, with what it needs at run time. All of it is optional."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import socket
import sys
from pathlib import Path

from corebound import native
from corebound.config import env
from corebound.errors import CommError

# The versions that go together, as group `oneccl` of pyproject.toml has them; a test compares the two.
RUN_TIME_PINS = ("impi-rt==2021.18.1", "tcmlib==1.6.0")
BUILD_PINS = ("oneccl-devel==2022.1.2",)
# oneCCL has room for 63 characters of a host's name; the rest of it makes the name unlike others.
_NAME_LENGTH = 40
_HWLOC, _FABRIC, _MPI = "libhwloc.so.15", "libfabric.so.1", "libmpi.so.12"


class CclUnavailableError(CommError):
    """oneCCL cannot be used on this machine."""


class Transfer(ctypes.Structure):
    """CoreboundTransfer of csrc/ccl/api.h: one message between two members."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("num_bytes", ctypes.c_int64),
        ("peer", ctypes.c_int32),
        ("is_send", ctypes.c_int32),
    )


def library_path() -> Path:
    """Return where the binding is, once it is built."""
    return native.LIBRARY_DIR / "libcorebound_ccl.so"


def require() -> list[str]:
    """Return what has to be loaded, in this order: paths, or names that the system's loader finds.

    Raises: CclUnavailableError naming what is missing and how to get it.
    """
    path = library_path()
    if not path.is_file():
        raise CclUnavailableError(
            f"oneCCL: {path} was not built",
            hint=f"pip install --no-deps {' '.join(BUILD_PINS + RUN_TIME_PINS)}, then `make native` in a checkout, "
            "or runtime/packaging/build_ccl.sh",
        )
    needed = [_HWLOC, _FABRIC, *([_MPI] if env.started_by_hydra() else [])]
    found = {name: _find(name) for name in needed}
    missing = [name for name, place in found.items() if place is None]
    if missing:
        raise CclUnavailableError(
            f"oneCCL: {', '.join(missing)} not found in {_prefix()} nor by the system's loader",
            hint=f"pip install --no-deps {' '.join(RUN_TIME_PINS)}",
        )
    return [*(place for place in found.values() if place is not None), str(path)]


@functools.cache
def library() -> ctypes.CDLL:
    """Return the C functions of csrc/ccl/api.h, with oneCCL set up for this process.

    Raises: CclUnavailableError when something is missing or does not load.
    """
    *below, path = require()
    tells = env.is_set("CCL_LOG_LEVEL")
    _set_defaults()
    try:
        for name in below:
            # Loaded first and for all to see: oneCCL asks the loader for them by name, which knows no environments.
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        lib = ctypes.CDLL(path)
    except OSError as error:
        raise CclUnavailableError(
            f"oneCCL: {path} does not load: {error}", hint="build it anew: runtime/packaging/build_ccl.sh"
        ) from error
    _declare(lib)
    if lib.corebound_ccl_init(int(tells), _host_name()):
        raise CclUnavailableError(
            f"oneCCL: {lib.corebound_ccl_error().decode()}", hint="unset CCL_ and FI_ variables, or see CCL_LOG_LEVEL"
        )
    return lib


def _set_defaults() -> None:
    """Choose oneCCL's settings, each unless the user did."""
    place = env.rank_environment()
    local_rank, local_size = (place.local_rank, place.local_size) if place else (0, 1)
    # With a thread of its own for the network, every wait is two changes of thread on a core that we have filled:
    # milliseconds in place of microseconds. Without it the waiting thread does the work.
    env.set_default("CCL_WORKER_OFFLOAD", "0")
    env.set_default("CCL_LOG_LEVEL", "error")
    if (_prefix() / "libtcp-fi.so").is_file():
        env.set_default("FI_PROVIDER_PATH", str(_prefix()))
    if env.started_by_hydra():
        env.set_default("CCL_ATL_TRANSPORT", "mpi")
        env.set_default("CCL_PROCESS_LAUNCHER", "hydra")
        return
    # Intel's default is MPI, whose library would wait for a launcher that is not there.
    env.set_default("CCL_ATL_TRANSPORT", "ofi")
    env.set_default("CCL_PROCESS_LAUNCHER", "none")
    env.set_default("CCL_LOCAL_RANK", str(local_rank))
    env.set_default("CCL_LOCAL_SIZE", str(max(local_size, local_rank + 1)))
    # Works on every network. Others (psm3, verbs, efa) want hardware, or rights that containers withhold.
    env.set_default("FI_PROVIDER", "tcp")


def _host_name() -> bytes:
    """Return a name for oneCCL that no other host has, in the sense of a place where processes have different numbers.

    oneCCL tells processes apart by number and host name. Containers, and nodes set up alike, often have both the same.
    """
    name = socket.gethostname()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    numbers = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116  a path object would follow into the pid
    digest = hashlib.sha256(f"{name} {boot} {numbers}".encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9-]', '-', name)[:_NAME_LENGTH]}-{digest[:16]}".encode()


def _prefix() -> Path:
    return Path(sys.prefix) / "lib"


def _find(name: str) -> str | None:
    path = _prefix() / name
    if path.is_file():
        return str(path)
    try:
        ctypes.CDLL(name)
    except OSError:
        return None
    return name


def _declare(lib: ctypes.CDLL) -> None:
    handle, text, size, seconds = ctypes.c_int64, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_double
    number, pointer = ctypes.c_int, ctypes.c_void_p
    signatures: dict[str, tuple[type, list[type]]] = {
        "error": (text, []),
        "version": (text, []),
        "init": (number, [number, text]),
        "address_bytes": (size, []),
        "serve": (number, [pointer]),
        "open": (number, [text, number, number, number, pointer]),
        "watch": (number, [handle, pointer]),
        "culprit": (number, [handle]),
        "close": (number, [handle, number]),
        "all_reduce": (number, [handle, pointer, handle, number, seconds]),
        "all_gather": (number, [handle, pointer, pointer, handle, seconds]),
        "broadcast": (number, [handle, pointer, handle, number, seconds]),
        "barrier": (number, [handle, seconds]),
        "start": (number, [handle, handle, pointer, number, pointer]),
        "wait": (number, [handle, handle, seconds]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, f"corebound_ccl_{name}")
        function.restype, function.argtypes = result, arguments
