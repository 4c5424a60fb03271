"""Makes ranks of one machine share memory in groups only, as ranks of several hosts do, for tests and benchmarks."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from corebound.errors import HostError

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_SHM = b"/dev/shm"


def enter(directory: Path) -> None:
    """Give this process, and threads it starts from now on, `directory` as its /dev/shm.

    Processes that enter the same directory share memory; others do not. `directory` lies in a tmpfs. Only this
    process's view changes.

    Raises: HostError without the right to mount (root, and no container that forbids it).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong
    done = (
        libc.unshare(_CLONE_NEWNS) == 0
        and libc.mount(None, b"/", None, flags(_MS_REC | _MS_PRIVATE), None) == 0
        and libc.mount(os.fsencode(directory), _SHM, None, flags(_MS_BIND), None) == 0
    )
    if not done:
        raise HostError(
            f"a /dev/shm of its own for this process: {os.strerror(ctypes.get_errno())}",
            hint="pretending to be several hosts needs root and the right to mount",
        )
