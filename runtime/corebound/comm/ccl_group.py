"""One communicator of oneCCL: made and used with timeouts, and left without taking the process down."""

from __future__ import annotations

import atexit
import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.distributed_c10d import Store

from corebound import native_ccl
from corebound.comm import ccl_open, shm_ops
from corebound.comm.base import as_timedelta
from corebound.comm.peer_watch import PeerWatch, interface_of, own_address
from corebound.config import env
from corebound.errors import CommError, CommTimeoutError

# The dtypes that oneCCL sums for us, with their numbers in csrc/ccl/api.h.
SUM_CODES = {**shm_ops.SUM_CODES, torch.int8: 4}
# oneCCL may still write into the buffers of operations that failed, so they stay for as long as the process.
_ABANDONED: list[Any] = []
_OPEN: weakref.WeakSet[CclGroup] = weakref.WeakSet()


class CclError(CommError):
    """An operation of oneCCL failed: `code` is one of shm_ops, `culprit` the member's place, -1 if not known."""

    def __init__(self, code: int, culprit: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.culprit = culprit


class CclGroup:
    """The communicator of the members that `names` names, of which this is number `place`; each has its own store.

    Raises: PeerLostError or CommTimeoutError naming a member that ends, is cut off or does not come while it is made.
    Every operation: CclError; the group is then broken.
    """

    def __init__(self, store: Store, place: int, names: Sequence[str], timeout_s: float) -> None:
        _choose_interface()
        size = len(names)
        self._lib = native_ccl.library()
        self._handle = 0
        self._watch = PeerWatch(store, place, names, timeout_s)
        try:
            address = _exchange_address(self._lib, store, place, names, timeout_s)
            self._handle = ccl_open.join(self._lib, address, place, names, timeout_s, self._watch, store)
            sockets = (ctypes.c_int * size)(*self._watch.descriptors)
            self._lib.corebound_ccl_watch(self._handle, sockets)
            _OPEN.add(self)
        except BaseException:
            self._watch.close()
            raise

    def all_reduce(self, x: torch.Tensor, timeout_s: float) -> None:
        """Replace the contiguous `x`, of any shape, by its sum over the members."""
        args = (x.data_ptr(), x.numel(), SUM_CODES[x.dtype], timeout_s)
        self._check(self._lib.corebound_ccl_all_reduce(self._handle, *args), x)

    def all_gather(self, x: torch.Tensor, gathered: torch.Tensor, timeout_s: float) -> None:
        """Fill `gathered` with every member's `x`; both are contiguous. Shapes: x [*shape]; gathered [size, *shape]."""
        args = (x.data_ptr(), gathered.data_ptr(), x.nbytes, timeout_s)
        self._check(self._lib.corebound_ccl_all_gather(self._handle, *args), (x, gathered))

    def broadcast(self, x: torch.Tensor, root: int, timeout_s: float) -> None:
        """Replace the contiguous `x`, of any shape, by that of member `root`."""
        self._check(self._lib.corebound_ccl_broadcast(self._handle, x.data_ptr(), x.nbytes, root, timeout_s), x)

    def barrier(self, timeout_s: float) -> None:
        """Return when every member has called it."""
        self._check(self._lib.corebound_ccl_barrier(self._handle, timeout_s), None)

    def start(self, label: int, transfers: ctypes.Array[native_ccl.Transfer], buffers: Any) -> int:
        """Begin messages to and from members; return the number to wait for. `buffers` holds their memory.

        Every member calls it, with the same `label`: a wait ends with code MISUSE when the labels differ.
        """
        pending = ctypes.c_int64(0)
        code = self._lib.corebound_ccl_start(self._handle, label, transfers, len(transfers), ctypes.byref(pending))
        self._check(code, buffers)
        return pending.value

    def wait(self, pending: int, timeout_s: float, buffers: Any) -> None:
        """Return when those messages are over."""
        self._check(self._lib.corebound_ccl_wait(self._handle, pending, timeout_s), buffers)

    def close(self) -> None:
        """Leave; the other members notice at once if they wait for this one."""
        self._watch.close()
        # Over MPI oneCCL has to end before MPI does. Otherwise its end talks to the member that made the address, and
        # aborts this process when that one has gone before.
        self._lib.corebound_ccl_close(self._handle, int(env.started_by_hydra()))

    def _check(self, code: int, buffers: Any) -> None:
        if code:
            _ABANDONED.append(buffers)
            text = self._lib.corebound_ccl_error().decode()
            raise CclError(code, self._lib.corebound_ccl_culprit(self._handle), text)


@atexit.register
def _close_all() -> None:
    """Leave what nobody closed: a process that ends without ending MPI counts as crashed, and hydra kills the rest."""
    for group in list(_OPEN):
        group.close()


def _choose_interface() -> None:
    """Let oneCCL use the interface that leads to where ranks meet. It would take the first, which may lead nowhere."""
    address = own_address()
    interface = "lo" if address.startswith("127.") else interface_of(address)
    if interface is not None:
        for name in ("CCL_KVS_IFACE", "FI_TCP_IFACE"):
            env.set_default(name, interface)


def _exchange_address(lib: ctypes.CDLL, store: Store, place: int, names: Sequence[str], timeout_s: float) -> bytes:
    """Return the address of oneCCL's key-value store, which member 0 makes."""
    if place == 0:
        buffer = ctypes.create_string_buffer(lib.corebound_ccl_address_bytes())
        if lib.corebound_ccl_serve(buffer):
            raise CommError(f"oneCCL: {lib.corebound_ccl_error().decode()}")
        store.set("address", buffer.raw.hex())
        return buffer.raw
    try:
        store.wait(["address"], as_timedelta(timeout_s))
        address = bytes.fromhex(store.get("address").decode())
    except RuntimeError as error:
        raise CommTimeoutError(f"oneCCL: no address from {names[0]} within {timeout_s:g} s") from error
    if len(address) != lib.corebound_ccl_address_bytes():
        raise CommError(f"oneCCL: {names[0]} gave an address of {len(address)} bytes, of another version")
    return address
