"""Signals as bytes on a pipe, so that one selector can wait for them together with everything else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Literal

# Why the launcher has a job stopped: somebody asked it to, somebody asked one of the hosts to, or a rank or a host is
# gone. Whoever asks for the same a second time wants it at once.
StopCause = Literal["user", "host", "failure"]


class SignalPipe:
    """While entered, the given signals do nothing but appear in `read`; those ignored before stay ignored.

    Outside the main thread Python delivers no signals, so there the pipe stays silent.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = tuple(numbers)
        self._previous: dict[signal.Signals, signal._HANDLER] = {}
        self._previous_fd = -1
        self._active = False

    def __enter__(self) -> SignalPipe:
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
            for number in self._numbers:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, _nothing)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._active:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._previous_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._read_fd

    def read(self) -> list[signal.Signals]:
        """Return the signals that came since the last call."""
        try:
            data = os.read(self._read_fd, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in data]


@contextmanager
def awaitable_children() -> Iterator[None]:
    """While entered, children that end can be waited for, even if we were started with SIGCHLD ignored.

    The kernel forgets the status of a child when its parent ignores the signal, and every failure would look like 0.
    """
    ignored = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    )
    if ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler has to exist for the signal to reach the pipe."""


def describe_status(code: int) -> str:
    """Return what an exit code says: `exited with code 3` or, for 128+n, `was killed by SIGKILL`."""
    if code > 128 and code - 128 in {int(number) for number in signal.Signals}:
        return f"was killed by {signal.Signals(code - 128).name}"
    return f"exited with code {code}"
