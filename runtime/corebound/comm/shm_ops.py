"""The native side of the shared-memory provider: C functions, torch operators, and their failures as exceptions."""

from __future__ import annotations

import ctypes
import functools
import re

import torch

from corebound import native
from corebound.config import env
from corebound.errors import CommError, CommTimeoutError, ConfigError, KernelError, PeerLostError
from corebound.topology.native_report import native_active_isa

PEER_LOST, TIMED_OUT, MISUSE, NO_SPACE, SYSTEM, UNSUPPORTED, ELSEWHERE = 1, 2, 3, 4, 5, 6, 8
# The dtypes that are summed, with their numbers in csrc/comm/reduce.h.
SUM_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int32: 3}
TOKEN_BYTES = 16
_CODED = re.compile(r"corebound-comm (\d+): (.*)")
_HINTS = {
    PEER_LOST: "the log of that rank says why it ended",
    TIMED_OUT: "that rank is stuck or busy elsewhere; COREBOUND_COMM_TIMEOUT_S sets the limit",
    MISUSE: "all ranks must call the same collectives in the same order, with the same shapes and dtypes",
}


class AbandonedError(CommError):
    """A member left the group because of a failure outside it; who it was is told by other means."""


class Message(ctypes.Structure):
    """CoreboundMessage of csrc/comm/api.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("num_bytes", ctypes.c_int64),
        ("socket", ctypes.c_int32),
        ("is_send", ctypes.c_int32),
    )


class HostsCall(ctypes.Structure):
    """CoreboundHosts of csrc/comm/api.h."""

    _fields_ = (
        ("local", ctypes.c_int64),
        ("local_rank", ctypes.c_int32),
        ("num_slices", ctypes.c_int32),
        ("host", ctypes.c_int32),
        ("num_hosts", ctypes.c_int32),
        ("sockets", ctypes.POINTER(ctypes.c_int32)),
        ("room", ctypes.c_void_p),
        ("label", ctypes.c_uint64),
        ("link_extra_s", ctypes.c_double),
        ("last_extra_s", ctypes.c_double),
        ("dtype", ctypes.c_int32),
        ("failed_host", ctypes.c_int32),
    )


_ERRORS = {PEER_LOST: PeerLostError, TIMED_OUT: CommTimeoutError, ELSEWHERE: AbandonedError}


@functools.cache
def library() -> ctypes.CDLL:
    """Return the C functions of csrc/comm/api.h with their argument types.

    Raises: KernelError when the native library was not built.
    """
    lib = native.core_library()
    handle, text, size, seconds = ctypes.c_int64, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_double
    number, pointer = ctypes.c_int, ctypes.c_void_p
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "error": (text, []),
        "segment_bytes": (size, [size]),
        "open": (number, [text, number, number, pointer, size, seconds, number, pointer, pointer]),
        "attach": (number, [handle, number, text, text]),
        "unlink": (number, [handle]),
        "probe": (number, [handle, seconds]),
        "close": (number, [handle]),
        "set_choice": (number, [handle, number, number]),
        "describe": (number, [handle, pointer, size]),
        "variant": (text, []),
        "reduce_slices": (number, [handle, pointer, handle, number, number, seconds]),
        "gather_slices": (number, [handle, pointer, handle, number, number, seconds]),
        "slice_elements": (handle, [handle, number, number]),
        "exchange": (number, [pointer, number, ctypes.c_uint64, seconds, pointer]),
        "all_reduce_hosts": (number, [pointer, pointer, handle, seconds]),
        "abandon": (number, [handle, number]),
        "sum": (number, [pointer, pointer, number, handle, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, f"corebound_comm_{name}")
        function.restype, function.argtypes = result, arguments
    return lib


@functools.cache
def load() -> None:
    """Load the operators and tell torch what they return, so that torch.compile can trace them.

    The variant that COREBOUND_ISA names is forced first: a group keeps the one that is active when it is made.

    Raises: KernelError when the native libraries were not built; ConfigError when that variant cannot run here.
    """
    library()
    try:
        native_active_isa(env.settings().isa)
    except KernelError as error:
        # The library is there: what is wrong is the name. Falling back to gloo would hide that.
        raise ConfigError(f"COREBOUND_ISA: {error.message}", hint="unset it to take the best variant") from error
    native.load_torch_ops()
    torch.library.register_fake("corebound::shm_all_reduce_", _fake_nothing)
    torch.library.register_fake("corebound::shm_broadcast_", _fake_nothing)
    torch.library.register_fake("corebound::shm_all_reduce", _fake_all_reduce)
    torch.library.register_fake("corebound::shm_all_gather", _fake_all_gather)


def failure(code: int) -> CommError:
    """Return the exception for a C function that returned `code`, with the text of the failure."""
    return error_for(code, library().corebound_comm_error().decode())


def from_operator(error: RuntimeError) -> tuple[int, Exception]:
    """Return the code and the exception for what an operator raised; code 0 and `error` itself if it is not ours."""
    match = _CODED.match(str(error))
    if match is None:
        return 0, error
    code = int(match[1])
    return code, error_for(code, match[2])


def error_for(code: int, text: str) -> CommError:
    """Return the exception of the class and with the hint that belong to `code`."""
    return _ERRORS.get(code, CommError)(text, hint=_HINTS.get(code))


def code_of(error: CommError) -> int:
    """Return the code that stands for the class of `error`."""
    return next((code for code, kind in _ERRORS.items() if isinstance(error, kind)), MISUSE)


def _fake_nothing(x: torch.Tensor, group: int, *_arguments: float) -> None:
    return None


def _fake_all_reduce(x: torch.Tensor, group: int, timeout_s: float = -1.0) -> torch.Tensor:
    return x.new_empty(x.shape)


def _fake_all_gather(x: torch.Tensor, group: int, size: int, timeout_s: float = -1.0) -> torch.Tensor:
    return x.new_empty((size, *x.shape))
