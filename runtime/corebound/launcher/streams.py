"""Carries a rank's output on, keeps its last lines, and copies it to a log file."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import BinaryIO

from corebound.logs import get_logger

_CHUNK_BYTES = 1 << 16
_PARTIAL_LINE_MS = 100
# What is longer than a chunk is no prompt and no progress bar but data: it is worth a wait to keep its line whole.
_PARTIAL_DATA_MS = 2000
_LONGEST_WHOLE_LINE_BYTES = 1 << 24
_LINE_END = (b"\n", b"\r")
TAIL_LINES = 20
_TAIL_LINE_BYTES = 2000

# A lock for each sink, shared by all ranks: whole lines of different ranks must not tear each other.
_write_locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
_incomplete: set[str] = set()
_logger = get_logger(__name__)


class Pump:
    """A thread that moves one stream to a sink (a descriptor, a function, None for nowhere), line by line.

    A thread each, because a terminal that has stopped reading must block the rank that writes, not the supervision.
    """

    def __init__(self, source_fd: int, sink: int | Callable[[bytes], None] | None, log: BinaryIO | None) -> None:
        self._source_fd = source_fd
        self._sink = sink
        self._log = log
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait until the stream has ended and all of it was written."""
        self._thread.join(timeout_s)

    def tail(self) -> list[str]:
        """Return the last lines that were seen."""
        return list(self._tail)

    def _run(self) -> None:
        pending = bytearray()
        poll = select.poll()
        poll.register(self._source_fd, select.POLLIN)
        while True:
            if pending and not poll.poll(_PARTIAL_LINE_MS if len(pending) <= _CHUNK_BYTES else _PARTIAL_DATA_MS):
                self._write(bytes(pending))  # a prompt or a progress bar without a line end must not wait
                pending.clear()
            data = os.read(self._source_fd, _CHUNK_BYTES)
            if not data:
                break
            end = max(data.rfind(mark) for mark in _LINE_END) + 1
            if end:
                end += len(pending)
            pending += data
            if len(pending) - end > _LONGEST_WHOLE_LINE_BYTES:
                end = len(pending)
            self._write(bytes(pending[:end]))
            del pending[:end]
        self._write(bytes(pending))
        os.close(self._source_fd)

    def _write_log(self, data: bytes) -> None:
        """Write to the log, as long as that works: a full disk under it must not cost the job its output."""
        try:
            view = memoryview(data)
            while view and self._log is not None:
                view = view[self._log.write(view) :]
        except OSError as error:
            name, self._log = str(getattr(self._log, "name", "log")), None
            if name not in _incomplete:  # standard output and standard error have one log between them
                _incomplete.add(name)
                text = "%s: %s: %s; the log is incomplete, the job goes on"
                _logger.warning(text, socket.gethostname(), name, error.strerror)

    def _write(self, data: bytes) -> None:
        if not data:
            return
        self._write_log(data)
        self._tail.extend(
            line[:_TAIL_LINE_BYTES] for line in data.decode(errors="replace").splitlines() if line.strip()
        )
        if self._sink is None:
            return
        if callable(self._sink):
            self._sink(data)
            return
        try:
            with _write_locks[self._sink]:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._sink, view) :]
        except OSError:
            self._sink = None  # nobody reads any more; the tail and the log still matter


def readable(fd: int) -> bool:
    """Return whether something waits to be read from a descriptor, the end of what comes included."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
