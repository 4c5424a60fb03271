"""A thread that writes to a descriptor, so that a peer which does not read can never hold up the one that speaks."""

from __future__ import annotations

import os
import threading
from collections import deque


class QueueWriter:
    """Writes what is put, in order. After `idle_s` without a word it writes `idle`, which tells the peer that we live.

    A descriptor that nobody reads any more swallows the rest: whether that matters is for others to notice.
    """

    def __init__(self, fd: int, *, idle: bytes = b"", idle_s: float | None = None) -> None:
        self._fd = fd
        self._idle = idle
        self._idle_s = idle_s
        self._queue: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._closing = False
        self._broken = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def backlog_bytes(self) -> int:
        """How much waits to be written."""
        return self._backlog_bytes

    @property
    def broken(self) -> bool:
        """Whether nobody reads any more."""
        return self._broken

    def put(self, data: bytes, *, limit_bytes: int | None = None) -> None:
        """Queue data; with a limit, wait while more than that is queued already."""
        with self._changed:
            while limit_bytes is not None and self._backlog_bytes > limit_bytes and not self._broken:
                self._changed.wait()
            if self._broken:
                return
            self._queue.append(data)
            self._backlog_bytes += len(data)
            self._changed.notify_all()

    def close(self, timeout_s: float | None = None, *, discard: bool = False) -> None:
        """Wait until all is written, for so long at most, and end the thread. The descriptor stays open."""
        with self._changed:
            if discard and self._queue:
                # What is being written stays at the head.
                self._queue = deque([self._queue[0]])
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                woken = self._changed.wait_for(lambda: self._queue or self._closing, self._idle_s)
                if self._closing and not self._queue:
                    return
                data = self._queue[0] if woken else self._idle
            self._write(data)
            with self._changed:
                if woken:
                    self._queue.popleft()
                    self._backlog_bytes -= len(data)
                if self._broken:
                    self._queue.clear()
                    self._backlog_bytes = 0
                self._changed.notify_all()
                if self._broken:
                    return

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            self._broken = True
