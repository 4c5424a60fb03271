"""What carries tensors between one member and its counterparts on other hosts: gloo's connections, or oneCCL's."""

from __future__ import annotations

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
            with gloo_greeting_on_stderr():
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
        """Begin all transfers, or as soon as those under way are over: oneCCL could mix them up."""
        exchange = _Exchange(label, sends, receives)
        self._queue.append(exchange)
        if len(self._queue) == 1:
            self._begin(exchange)
        return exchange

    def wait(self, started: _Exchange, timeout_s: float) -> None:
        """Return when those transfers are over; they are waited for in the order of their start."""
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
            exchange.pending = self._group.start(_number(exchange.label), transfers, exchange)
        except CclError as error:
            raise self._error(error, exchange) from None

    def _error(self, error: CclError, exchange: _Exchange) -> LinkError:
        expected = [other for other, _ in (*exchange.receives, *exchange.sends)]
        host = error.culprit if error.culprit >= 0 else next(iter(expected), 0)
        if error.code == shm_ops.PEER_LOST:
            return LinkError(host, CommError(error.message))
        # Where all live, either a message was longer than what this call expects, or the labels differ. Over gloo such
        # calls wait for each other in vain; so that is what is told here, and faults.conclude finds the two calls.
        return LinkError(host, CommTimeoutError(error.message))


@functools.lru_cache(maxsize=1024)
def _number(label: str) -> int:
    """Return a number by which a message is matched with the call that expects exactly it."""
    return zlib.crc32(label.encode()) & 0x7FFFFFFF
