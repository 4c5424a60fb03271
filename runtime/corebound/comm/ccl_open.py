"""Joins a communicator of oneCCL, which waits for members without a limit and does not notice when one is gone."""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
import time
from collections.abc import Sequence

from torch.distributed.distributed_c10d import Store

from corebound.comm.base import check_timeout
from corebound.comm.peer_watch import CUT_OFF_S, PeerWatch
from corebound.errors import CommError, CommTimeoutError, PeerLostError

_WATCH_EVERY_S = 0.05
# A member that ended may have done its part before; then the others still come together.
_GRACE_S = 1.0
# Members give up at about the same time. Each then says that it lives, and waits so long for the others to say it.
_ROLL_CALL_S = 2.0


def join(
    lib: ctypes.CDLL,
    address: bytes,
    place: int,
    names: Sequence[str],
    timeout_s: float,
    watch: PeerWatch,
    store: Store,
) -> int:
    """Return the handle of a new communicator of the members that `names` names.

    Raises: PeerLostError naming a member that ended, or has been cut off for CUT_OFF_S; CommTimeoutError after the
    timeout, naming those that say nothing.
    """
    handle = ctypes.c_int64(0)
    failure: list[str] = []

    def enter() -> None:
        if lib.corebound_ccl_open(address, int(place == 0), place, len(names), ctypes.byref(handle)):
            failure.append(lib.corebound_ccl_error().decode())

    thread = threading.Thread(target=enter, daemon=True, name="corebound-ccl-open")
    deadline = time.monotonic() + (math.inf if math.isinf(timeout_s) else check_timeout(timeout_s))
    with watch.noticing_cuts():
        thread.start()
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(_WATCH_EVERY_S)
            if (ended := watch.ended()) is not None:
                thread.join(_GRACE_S)
                if thread.is_alive():
                    raise PeerLostError(
                        f"oneCCL: {names[ended]} is gone, gave up, or was cut off for {CUT_OFF_S} s "
                        "while the communicator was made"
                    )
    if thread.is_alive():
        raise CommTimeoutError(_who_is_missing(place, names, timeout_s, store))
    if failure:
        raise CommError(f"oneCCL: making a communicator: {failure[0]}")
    return handle.value


def _who_is_missing(place: int, names: Sequence[str], timeout_s: float, store: Store) -> str:
    """Return what to say after the timeout. The store may be what cannot be reached, so a thread asks it."""
    silent = set(range(len(names))) - {place}

    def ask() -> None:
        end = time.monotonic() + _ROLL_CALL_S
        with contextlib.suppress(RuntimeError):  # the store is gone: then nobody is known to live
            store.set(f"waiting/{place}", "")
            while silent and time.monotonic() < end:
                silent.difference_update({other for other in silent if store.check([f"waiting/{other}"])})
                time.sleep(_WATCH_EVERY_S)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ROLL_CALL_S + 0.5)
    text = f"oneCCL: not all {len(names)} members joined the communicator within {timeout_s:g} s; "
    if silent:
        return f"{text}no sign of life from {', '.join(names[other] for other in sorted(silent))}"
    return f"{text}all of them wait, so some cannot reach each other: {', '.join(names)}"
