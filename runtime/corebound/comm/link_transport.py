"""What carries tensors between one member and its counterparts on other hosts: gloo's connections, or oneCCL's."""

from __future__ import annotations

import ctypes
import functools
import zlib
from typing import Any, Protocol

import torch
from torch._C._distributed_c10d import ProcessGroupGloo
from torch.distributed.distributed_c10d import Store

from corebound.comm import shm_ops
from corebound.comm.base import as_timedelta, from_torch_error
from corebound.comm.ccl_group import CclError, CclGroup
from corebound.errors import CommError, CommTimeoutError
from corebound.native_ccl import Transfer

# A host and the data that goes to it or comes from it.
Messages = list[tuple[int, torch.Tensor]]
_LABEL_BYTES = 8


class LinkError(CommError):
    """The exchange with the counterpart on host `host` failed."""

    def __init__(self, host: int, error: CommError) -> None:
        super().__init__(error.message)
        self.host = host
        self.timed_out = isinstance(error, CommTimeoutError)


class LinkTransport(Protocol):
    """Raises (every method but close): LinkError naming the host that did not answer."""

    @property
    def name(self) -> str:
        """`gloo` or `ccl`."""

    def start(self, sends: Messages, receives: Messages, label: str) -> Any:
        """Begin all transfers; return what to wait for. Only calls with the same `label` meet."""

    def wait(self, started: Any, timeout_s: float) -> None:
        """Return when those transfers are over."""

    def close(self) -> None:
        """End the connections, which the counterparts notice at once."""


class GlooTransport:
    """gloo's send and receive, without its collectives. Every counterpart makes one with the same store."""

    name = "gloo"

    def __init__(self, store: Store, host: int, num_hosts: int, timeout_s: float) -> None:
        self._host = host
        self._failed: list[Any] = []
        try:
            self._group: Any = ProcessGroupGloo(store, host, num_hosts, as_timedelta(timeout_s))
        except (RuntimeError, ValueError) as error:
            raise from_torch_error(error, operation="connecting the hosts", rank=host) from error

    def start(self, sends: Messages, receives: Messages, label: str) -> list[tuple[int, Any]]:
        """Begin all transfers; return each with the host it concerns."""
        tag = _number(label)
        works: list[tuple[int, Any]] = []
        for call, transfers in ((self._group.recv, receives), (self._group.send, sends)):
            for other, tensor in transfers:
                try:
                    works.append((other, call([tensor], other, tag)))
                except (RuntimeError, ValueError) as error:
                    self._failed = [works, sends, receives]
                    raise self._error(other, error) from error
        return works

    def wait(self, started: list[tuple[int, Any]], timeout_s: float) -> None:
        """Return when those transfers are over."""
        limit = as_timedelta(timeout_s)
        for other, work in started:
            try:
                work.wait(limit)
            except (RuntimeError, ValueError) as error:
                self._failed = [started]
                raise self._error(other, error) from error

    def close(self) -> None:
        """End the connections."""
        # What has failed is kept alive until the connections are gone: gloo may still write into it.
        self._group = None
        self._failed.clear()

    def _error(self, other: int, error: Exception) -> LinkError:
        return LinkError(other, from_torch_error(error, operation="exchange between hosts", rank=self._host))


class CclTransport:
    """oneCCL's send and receive. Every counterpart makes one with the same store.

    oneCCL matches messages by their order alone and gives short ones to calls that expect long ones. So each is
    announced by its label.
    """

    name = "ccl"

    def __init__(self, store: Store, host: int, num_hosts: int, timeout_s: float) -> None:
        self._group = CclGroup(store, host, num_hosts, timeout_s)

    def start(self, sends: Messages, receives: Messages, label: str) -> tuple[int, list[Any]]:
        """Begin all transfers; return their number, and what they use."""
        number = _number(label)
        own = (ctypes.c_int64 * 1)(number)
        labels = (ctypes.c_int64 * len(receives))()
        transfers = (Transfer * (2 * (len(receives) + len(sends))))()
        place = 0
        for index, (other, tensor) in enumerate(receives):
            transfers[place] = Transfer(ctypes.addressof(labels) + index * _LABEL_BYTES, _LABEL_BYTES, other, 0)
            transfers[place + 1] = Transfer(tensor.data_ptr(), tensor.nbytes, other, 0)
            place += 2
        for other, tensor in sends:
            transfers[place] = Transfer(ctypes.addressof(own), _LABEL_BYTES, other, 1)
            transfers[place + 1] = Transfer(tensor.data_ptr(), tensor.nbytes, other, 1)
            place += 2
        used = [own, labels, sends, receives]
        try:
            return self._group.start(transfers, used), used
        except CclError as error:
            raise _link_error(error, transfers[0].peer) from None

    def wait(self, started: tuple[int, list[Any]], timeout_s: float) -> None:
        """Return when those transfers are over."""
        pending, used = started
        own, labels, sends, receives = used
        try:
            self._group.wait(pending, timeout_s, used)
        except CclError as error:
            raise _link_error(error, (receives or sends)[0][0]) from None
        for label, (other, _) in zip(labels, receives, strict=True):
            if label != own[0]:
                raise _disagreement(other)

    def close(self) -> None:
        """End the connections."""
        self._group.close()


def _link_error(error: CclError, other: int) -> LinkError:
    host = error.culprit if error.culprit >= 0 else other
    if error.code == shm_ops.PEER_LOST:
        return LinkError(host, CommError(error.message))
    if error.code == shm_ops.TIMED_OUT:
        return LinkError(host, CommTimeoutError(error.message))
    # All members live, and oneCCL refuses what came: it was longer than what was expected.
    return _disagreement(host)


def _disagreement(other: int) -> LinkError:
    # Over gloo such calls wait for each other in vain. What the members were in tells the rest, see faults.conclude.
    return LinkError(other, CommTimeoutError(f"host {other} made another call"))


@functools.lru_cache(maxsize=1024)
def _number(label: str) -> int:
    """Return a number by which a message is matched with the call that expects exactly it."""
    return zlib.crc32(label.encode()) & 0x7FFFFFFF
