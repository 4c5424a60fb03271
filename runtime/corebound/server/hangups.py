"""Notices clients that close their connection while they wait for an answer."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Hangups:
    """The connections that wait for an answer, and whom to tell when the other side of one is closed.

    A thread that waits for the engine cannot wait for its client too; `look` does it for all of them. A client that
    closes only its sending side counts as gone: it cannot be told from one that has closed both.
    """

    def __init__(self) -> None:
        # Held while they are told: a file's number must not be taken for the connection that gets it next.
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._tells: dict[int, Callable[[], None]] = {}

    @contextmanager
    def watched(self, connection: socket.socket, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell` once, from the thread that looks, if the client closes the connection meanwhile."""
        number = connection.fileno()
        with self._lock:
            self._tells[number] = tell
            # Not for what a client sends: the next request may be here already.
            self._poll.register(number, select.POLLRDHUP)
        try:
            yield
        finally:
            with self._lock:
                self._forget(number)

    def look(self) -> None:
        """Tell of every connection that was closed since the last look; this does not wait."""
        with self._lock:
            for number, _ in self._poll.poll(0):
                tell = self._tells[number]
                self._forget(number)
                tell()

    def _forget(self, number: int) -> None:
        if self._tells.pop(number, None) is not None:
            self._poll.unregister(number)
