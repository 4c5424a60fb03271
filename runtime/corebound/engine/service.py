"""The loop of rank 0 that answers requests as they come, together with those that are running."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from corebound.engine.engine import Engine
from corebound.engine.inbox import Inbox, State, Tell, Ticket
from corebound.engine.request import Request
from corebound.errors import CoreboundError, RequestError

# Turns a ticket into a request of that number; raises RequestError for one that cannot run.
MakeRequest = Callable[[int, Ticket], Request]


class Service:
    """Answers the requests of an inbox until it drains. `check`, called when nobody asks, fails if a rank is gone."""

    def __init__(
        self, engine: Engine, make_request: MakeRequest, inbox: Inbox, check: Callable[[], None], heartbeat_s: float
    ) -> None:
        self._engine = engine
        self._make_request = make_request
        self._inbox = inbox
        self._check = check
        self._heartbeat_s = heartbeat_s
        self._tells: dict[int, Tell] = {}
        self._numbers = itertools.count()

    def run(self) -> None:
        """Return when the inbox drains and every request has its answer.

        After an error every request that has none is told of it.
        """
        try:
            while self._turn():
                self._inbox.beat()
        except BaseException as error:
            reason = error.message if isinstance(error, CoreboundError) else f"{type(error).__name__}: {error}"
            failure = CoreboundError(f"the service has failed: {reason}", hint="the log of rank 0 says more")
            self._inbox.fail(failure)
            for tell in self._tells.values():
                tell(failure)
            raise

    def _turn(self) -> bool:
        """Take what waits and run one step, or see that all ranks are there; return whether to go on."""
        tickets = self._inbox.take(0.0 if self._engine.has_work else self._heartbeat_s)
        for ticket in tickets:
            self._start(ticket)
        if self._engine.has_work:
            self._step()
        elif self._inbox.state is State.DRAINING and not self._inbox.num_waiting:
            return False
        elif not tickets:
            self._check()
        return True

    def _start(self, ticket: Ticket) -> None:
        number = next(self._numbers)
        try:
            self._engine.submit(self._make_request(number, ticket))
        except RequestError as error:
            ticket.tell(error)
        else:
            self._tells[number] = ticket.tell

    def _step(self) -> None:
        for update in self._engine.step():
            tell = self._tells[update.request_id]
            if update.new_text:
                tell(update.new_text)
            if update.output is not None:
                del self._tells[update.request_id]
                tell(update.output)
