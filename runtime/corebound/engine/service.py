"""The loop of rank 0 that answers requests as they come, together with those that are running."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from corebound.engine.engine import Engine
from corebound.engine.inbox import Inbox, State, Ticket
from corebound.engine.request import Request
from corebound.errors import CoreboundError, RequestError
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)
# Reading a prompt takes time in which those that run stand still.
_STARTS_PER_TURN = 4

# Turns a ticket into a request of that number; raises RequestError for one that cannot run.
MakeRequest = Callable[[int, Ticket], Request]


class Service:
    """Answers the requests of an inbox until it drains. `check`, called when nobody asks, fails if a rank is gone."""

    def __init__(
        self,
        engine: Engine,
        make_request: MakeRequest,
        inbox: Inbox,
        check: Callable[[], None],
        *,
        heartbeat_s: float,
        max_running: int,
    ) -> None:
        self._engine = engine
        self._make_request = make_request
        self._inbox = inbox
        self._check = check
        self._heartbeat_s = heartbeat_s
        self._check_at_s = time.monotonic() + heartbeat_s
        self._max_running = max_running
        self._tickets: dict[int, Ticket] = {}
        self._numbers = itertools.count()

    def run(self) -> None:
        """Return when the inbox drains and every request has its answer.

        After an error every request that has none is told of it.
        """
        try:
            while self._turn():
                pass
        except BaseException as error:
            reason = error.message if isinstance(error, CoreboundError) else f"{type(error).__name__}: {error}"
            failure = CoreboundError(f"the service has failed: {reason}", hint="the log of rank 0 says more")
            self._inbox.fail(failure)
            for ticket in self._tickets.values():
                ticket.tell(failure)
            raise

    def _turn(self) -> bool:
        """Take what waits and run one step, or see that all ranks are there; return whether to go on."""
        self._end_cancelled()
        self._inbox.num_running = len(self._tickets)
        # What the engine has no room for waits in the inbox, whose length is limited.
        room = self._max_running - len(self._tickets)
        for ticket in self._inbox.take(min(room, _STARTS_PER_TURN), 0.0 if self._engine.has_work else self._wait_s()):
            self._start(ticket)
        self._inbox.num_running = len(self._tickets)
        if self._engine.has_work:
            self._step()
            self._answered()
        elif self._inbox.state is State.DRAINING and not self._inbox.num_waiting:
            return False
        elif self._wait_s() == 0:
            self._check()
            self._answered()
        return True

    def _wait_s(self) -> float:
        """Return in how many seconds all ranks have to be asked whether they are there."""
        return max(0.0, self._check_at_s - time.monotonic())

    def _answered(self) -> None:
        self._check_at_s = time.monotonic() + self._heartbeat_s
        self._inbox.beat()

    def _end_cancelled(self) -> None:
        for number in [number for number, ticket in self._tickets.items() if ticket.cancelled.is_set()]:
            self._engine.cancel(number)
            del self._tickets[number]
            _LOGGER.debug("request %d was cancelled", number)

    def _start(self, ticket: Ticket) -> None:
        number = next(self._numbers)
        self._tickets[number] = ticket
        try:
            self._engine.submit(self._make_request(number, ticket))
        except RequestError as error:
            del self._tickets[number]
            ticket.tell(error)
        except Exception as error:
            # A tokenizer may fail on a text of its own; nothing has been sent to other ranks yet.
            _LOGGER.exception("a request could not be read")
            del self._tickets[number]
            ticket.tell(RequestError(f"prompt: cannot be read: {type(error).__name__}: {error}"))

    def _step(self) -> None:
        for update in self._engine.step():
            tell = self._tickets[update.request_id].tell
            if update.new_text:
                tell(update.new_text)
            end = update.output or update.failure
            if end is not None:
                del self._tickets[update.request_id]
                tell(end)
            if update.failure is not None:
                _LOGGER.warning("request %d ended alone: %s", update.request_id, update.failure.message)
