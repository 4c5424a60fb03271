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

PEER_LOST, TIMED_OUT, MISUSE, NO_SPACE, SYSTEM, UNSUPPORTED = 1, 2, 3, 4, 5, 6
TOKEN_BYTES = 16
_CODED = re.compile(r"corebound-comm (\d+): (.*)")
_HINTS = {
    PEER_LOST: "the log of that rank says why it ended",
    TIMED_OUT: "that rank is stuck or busy elsewhere; COREBOUND_COMM_TIMEOUT_S sets the limit",
    MISUSE: "all ranks must call the same collectives in the same order, with the same shapes and dtypes",
}
_ERRORS = {PEER_LOST: PeerLostError, TIMED_OUT: CommTimeoutError}


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
    return _error(code, library().corebound_comm_error().decode())


def from_operator(error: RuntimeError) -> tuple[int, Exception]:
    """Return the code and the exception for what an operator raised; code 0 and `error` itself if it is not ours."""
    match = _CODED.match(str(error))
    if match is None:
        return 0, error
    code = int(match[1])
    return code, _error(code, match[2])


def _error(code: int, text: str) -> CommError:
    return _ERRORS.get(code, CommError)(text, hint=_HINTS.get(code))


def _fake_nothing(x: torch.Tensor, group: int, *_arguments: float) -> None:
    return None


def _fake_all_reduce(x: torch.Tensor, group: int, timeout_s: float = -1.0) -> torch.Tensor:
    return x.new_empty(x.shape)


def _fake_all_gather(x: torch.Tensor, group: int, size: int, timeout_s: float = -1.0) -> torch.Tensor:
    return x.new_empty((size, *x.shape))
