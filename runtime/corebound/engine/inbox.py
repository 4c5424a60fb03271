"""Requests that come while the engine runs: any thread may hand one in, the engine's thread takes them out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from corebound.engine.request import RequestOutput, SamplingParams
from corebound.errors import CoreboundError

# What a request hears: its text piece by piece, then the whole output; or why it has ended without one.
News = str | RequestOutput | CoreboundError
Tell = Callable[[News], None]
_SLICE_S = 0.5


class State(StrEnum):
    """What a service is doing. Requests are accepted while it is READY only."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class UnavailableError(CoreboundError):
    """The service takes no request now: it is loading, draining, full, or has failed."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Ticket:
    """One request that was handed in. `tell` is called on the engine's thread and must not wait.

    `cancelled` is set when nobody wants the answer any more: the request then ends before the next step, unheard.
    """

    prompt: str | tuple[int, ...]
    params: SamplingParams
    tell: Tell
    cancelled: threading.Event = field(default_factory=threading.Event)


class Inbox:
    """Where requests wait for the engine, at most `max_waiting` of them, and what the service is doing.

    `was_opened` is whether requests were ever taken: before that, silence is only loading.
    """

    def __init__(self, max_waiting: int = 256) -> None:
        # A condition's own lock is reentrant, so a signal handler may call `drain` at any moment.
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._max_waiting = max_waiting
        # How many requests the engine works on; it says so itself.
        self.num_running = 0
        self._state = State.LOADING
        self.was_opened = False
        self._beat_at_s = time.monotonic()

    @property
    def state(self) -> State:
        """What the service is doing."""
        return self._state

    @property
    def num_waiting(self) -> int:
        """How many requests the engine has not taken yet."""
        return len(self._waiting)

    @property
    def silent_s(self) -> float:
        """Seconds since the engine has last shown that all its ranks answer."""
        return time.monotonic() - self._beat_at_s

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Hand in requests, all or none.

        Raises: UnavailableError.
        """
        with self._changed:
            if self._state is not State.READY:
                raise UnavailableError(f"no requests are taken: the service is {self._state}")
            if len(self._waiting) + len(tickets) > self._max_waiting:
                raise UnavailableError(f"{len(self._waiting)} requests wait already", hint="try again later")
            self._waiting.extend(tickets)
            self._changed.notify()

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Give up requests: those that wait are taken out now, those that run end before the next step."""
        with self._changed:
            for ticket in tickets:
                ticket.cancelled.set()
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled.is_set())

    def drain(self) -> None:
        """Take no more requests; those that are here are still answered. A signal handler may call this."""
        with self._changed:
            if self._state is not State.FAILED:
                self._state = State.DRAINING
            self._changed.notify()

    def open(self) -> None:
        """Take requests from now on, unless the service is ending already."""
        with self._changed:
            if self._state is State.LOADING:
                self.beat()
                self.was_opened = True
                self._state = State.READY

    def fail(self, error: CoreboundError) -> None:
        """Take no more requests, and tell those that wait why."""
        with self._changed:
            self._state = State.FAILED
            left, self._waiting = self._waiting, deque()
        for ticket in left:
            ticket.tell(error)

    def take(self, most: int, timeout_s: float) -> list[Ticket]:
        """Return the first `most` that wait, at the latest after `timeout_s`, or soon when the service drains."""
        end_s = time.monotonic() + timeout_s
        with self._changed:
            while not self._waiting and self._state is not State.DRAINING:
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    break
                # A signal handler that drains between the test and the wait would not be heard.
                self._changed.wait(min(left_s, _SLICE_S))
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def beat(self) -> None:
        """Note that all ranks have just answered."""
        self._beat_at_s = time.monotonic()
