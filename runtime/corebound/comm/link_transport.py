"""What carries tensors between one member and its counterparts on other hosts: gloo, oneCCL, or sockets of our own."""

from __future__ import annotations

import ctypes
import functools
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._C._distributed_c10d import ProcessGroupGloo
from torch.distributed.distributed_c10d import Store

from corebound.comm import shm_ops
from corebound.comm.base import as_timedelta, from_torch_error
from corebound.comm.ccl_group import CclError, CclGroup
from corebound.comm.peer_watch import PeerWatch
from corebound.comm.quiet import gloo_greeting_on_stderr
from corebound.errors import CommError, CommTimeoutError
from corebound.native_ccl import Transfer

# A host and the data that goes to it or comes from it.
Messages = list[tuple[int, torch.Tensor]]


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
        """`gloo`, `ccl` or `tcp`."""

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
            with gloo_greeting_on_stderr():
                self._group: Any = ProcessGroupGloo(store, host, num_hosts, as_timedelta(timeout_s))
        except (RuntimeError, ValueError) as error:
            raise from_torch_error(error, operation="connecting the hosts", rank=host) from error

    def start(self, sends: Messages, receives: Messages, label: str) -> list[tuple[int, Any]]:
        """Begin all transfers; return each with the host it concerns.

        Raises: LinkError.
        """
        tag = number_of(label)
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
        """Return when those transfers are over.

        Raises: LinkError.
        """
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


class TcpTransport:
    """Sockets of our own, used by the calling thread alone. Every counterpart makes one with the same store."""

    name = "tcp"

    def __init__(self, store: Store, host: int, names: Sequence[str], timeout_s: float) -> None:
        self._connections = PeerWatch(store, host, names, timeout_s)
        self.sockets = (ctypes.c_int32 * len(names))(*self._connections.descriptors)

    def start(self, sends: Messages, receives: Messages, label: str) -> _Exchange:
        """Return the transfers, which begin when they are waited for."""
        return _Exchange(label, sends, receives)

    def wait(self, started: _Exchange, timeout_s: float) -> None:
        """Return when those transfers are over.

        Raises: LinkError.
        """
        calls = [(other, tensor, 1) for other, tensor in started.sends]
        calls += [(other, tensor, 0) for other, tensor in started.receives]
        messages = (shm_ops.Message * len(calls))()
        for place, (other, tensor, is_send) in enumerate(calls):
            messages[place] = shm_ops.Message(tensor.data_ptr(), tensor.nbytes, self.sockets[other], is_send)
        failed = ctypes.c_int(0)
        code = shm_ops.library().corebound_comm_exchange(
            messages, len(calls), number_of(started.label), timeout_s, ctypes.byref(failed)
        )
        if code:
            raise self.failure(code, calls[failed.value][0])

    def failure(self, code: int, host: int) -> LinkError:
        """Return the exception for a C function that returned `code` over the connection to `host`."""
        return _link_error(code, host, shm_ops.library().corebound_comm_error().decode())

    def close(self) -> None:
        """End the connections."""
        self._connections.close()


@dataclass
class _Exchange:
    label: str
    sends: Messages
    receives: Messages
    pending: int | None = None


class CclTransport:
    """oneCCL's send and receive. Every counterpart makes one with the same store, and all make the same calls."""

    name = "ccl"

    def __init__(self, store: Store, host: int, names: Sequence[str], timeout_s: float) -> None:
        self._group = CclGroup(store, host, names, timeout_s)
        self._queue: deque[_Exchange] = deque()

    def start(self, sends: Messages, receives: Messages, label: str) -> _Exchange:
        """Begin all transfers, or as soon as those under way are over: oneCCL could mix them up.

        Raises: LinkError.
        """
        exchange = _Exchange(label, sends, receives)
        self._queue.append(exchange)
        if len(self._queue) == 1:
            self._begin(exchange)
        return exchange

    def wait(self, started: _Exchange, timeout_s: float) -> None:
        """Return when those transfers are over; they are waited for in the order of their start.

        Raises: LinkError, also where the next transfers in the queue cannot begin.
        """
        assert started is self._queue[0]
        assert started.pending is not None
        try:
            self._group.wait(started.pending, timeout_s, started)
        except CclError as error:
            raise self._error(error, started) from None
        self._queue.popleft()
        if self._queue:
            self._begin(self._queue[0])

    def close(self) -> None:
        """End the connections."""
        self._group.close()

    def _begin(self, exchange: _Exchange) -> None:
        calls = [(other, tensor, 0) for other, tensor in exchange.receives]
        calls += [(other, tensor, 1) for other, tensor in exchange.sends]
        transfers = (Transfer * len(calls))()
        for place, (other, tensor, is_send) in enumerate(calls):
            transfers[place] = Transfer(tensor.data_ptr(), tensor.nbytes, other, is_send)
        try:
            exchange.pending = self._group.start(number_of(exchange.label), transfers, exchange)
        except CclError as error:
            raise self._error(error, exchange) from None

    def _error(self, error: CclError, exchange: _Exchange) -> LinkError:
        expected = [other for other, _ in (*exchange.receives, *exchange.sends)]
        host = error.culprit if error.culprit >= 0 else next(iter(expected), 0)
        return _link_error(error.code, host, error.message)


def _link_error(code: int, host: int, text: str) -> LinkError:
    if code == shm_ops.PEER_LOST:
        return LinkError(host, CommError(text))
    # Where all live, either a message was longer than what this call expects, or the labels differ. Over gloo such
    # calls wait for each other in vain; so that is what is told here, and faults.conclude finds the two calls.
    return LinkError(host, CommTimeoutError(text))


@functools.lru_cache(maxsize=1024)
def number_of(label: str) -> int:
    """Return a number by which a message is matched with the call that expects exactly it."""
    return zlib.crc32(label.encode()) & 0x7FFFFFFF
