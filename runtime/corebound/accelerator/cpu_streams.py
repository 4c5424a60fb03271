"""The one stream of the CPU, on which every call is done when it returns, and events that read the host's clock."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch

from corebound.errors import ConfigError


class CpuStream:
    """A stream on which there is never anything to wait for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Ignore device and priority: every stream is this one."""

    def synchronize(self) -> None:
        """Return at once: everything is done."""

    def query(self) -> bool:
        """Return True: everything is done."""
        return True

    def wait_stream(self, stream: Any) -> None:
        """Return at once: what was called before is done."""

    def wait_event(self, event: CpuEvent) -> None:
        """Return at once: what was called before is done."""

    def record_event(self, event: CpuEvent | None = None) -> CpuEvent:
        """Return the event, or a new one, recorded now."""
        event = CpuEvent() if event is None else event
        event.record(self)
        return event


class CpuEvent:
    """A moment. The constructor takes what torch's events take; every event can be timed."""

    def __init__(self, enable_timing: bool = True, blocking: bool = False, interprocess: bool = False) -> None:
        self._moment_ns: int | None = None

    def record(self, stream: Any = None) -> None:
        """Set the moment to now."""
        self._moment_ns = time.perf_counter_ns()

    def query(self) -> bool:
        """Return True: what was called before is done."""
        return True

    def synchronize(self) -> None:
        """Return at once: what was called before is done."""

    def wait(self, stream: Any = None) -> None:
        """Return at once: what was called before is done."""

    def elapsed_time(self, end_event: CpuEvent) -> float:
        """Return the milliseconds from this moment to another one.

        Raises: ConfigError when one of them was not recorded.
        """
        if self._moment_ns is None or end_event._moment_ns is None:
            raise ConfigError("event: elapsed_time needs two events, and record() was not called on both")
        return (end_event._moment_ns - self._moment_ns) / 1e6


DEFAULT_STREAM = CpuStream()


class Ranges(threading.local):
    """The named ranges that a thread has begun; torch's profiler shows them."""

    def __init__(self) -> None:
        self._open: list[torch.autograd.profiler.record_function] = []

    def push(self, name: str) -> None:
        """Begin a range."""
        entered = torch.autograd.profiler.record_function(name)
        entered.__enter__()
        self._open.append(entered)

    def pop(self) -> None:
        """End the range begun last. Raises: ConfigError when there is none."""
        if not self._open:
            raise ConfigError("range_pop: no range was begun on this thread with range_push")
        self._open.pop().__exit__(None, None, None)
