"""Follows the agents of a launch on several hosts: greets them, gives each its part, stops all at the first failure."""

from __future__ import annotations

import json
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from corebound.errors import EXIT_COMM, EXIT_LAUNCH, LaunchError
from corebound.launcher import notify
from corebound.launcher.events import Failure, failure_from_event
from corebound.launcher.frames import LOST_S, Kind
from corebound.launcher.greeting import Greeting, Hello, hello_from_event
from corebound.launcher.link import Link
from corebound.launcher.outcome import LaunchOutcome
from corebound.launcher.part import AgentPart
from corebound.launcher.queuewriter import QueueWriter
from corebound.launcher.signals import SignalPipe, describe_status
from corebound.launcher.streams import readable
from corebound.logs import get_logger

GREET_S = 30.0
# A lost peer is an effect. Its cause, on another host, is given this long to be reported.
CAUSE_S = 1.0
_SSH_FAILED = 255
_BACKLOG_BYTES = 8 << 20
_BACKLOG_POLL_S = 0.1
_log = get_logger(__name__)

HintFor = Callable[[Sequence[str]], str | None]


class Follower:
    """Speaks with all agents of a launch. `hint_for` knows what to do about the last words of the transport."""

    def __init__(self, links: Sequence[Link], signals: SignalPipe, hint_for: HintFor) -> None:
        self._links = links
        self._signals = signals
        self._hint_for = hint_for
        self._hellos: dict[str, Hello] = {}
        self._refusals: dict[str, Failure] = {}
        self._sinks: dict[Kind, QueueWriter] = {"stdout": QueueWriter(1), "stderr": QueueWriter(2)}
        self._stop_at_s: float | None = None
        self._stopped = False
        # Stopped in order, on one of its hosts: the others may finish what they do.
        self._in_order = False
        self._failed_hosts: set[str] = set()
        self._running: set[str] = set()
        self.outcome = LaunchOutcome()

    def greet(self, greetings: Mapping[str, Greeting]) -> dict[str, Hello] | None:
        """Return what the hosts said of themselves, None when a signal came first.

        Raises: LaunchError naming every host that cannot take part.
        """
        for link in self._links:
            link.say(greetings[link.host].to_json())
        deadline_s = time.monotonic() + GREET_S
        while waiting := [link for link in self._links if link.host not in {**self._hellos, **self._refusals}]:
            self._turn(min(1.0, max(0.0, deadline_s - time.monotonic())))
            if self.outcome.interrupted:
                return None
            for link in waiting:
                if link.ended and link.host not in {**self._hellos, **self._refusals}:
                    self._refusals[link.host] = self._failure_of_end(link)
                elif time.monotonic() >= deadline_s and not link.ended:
                    link.close(kill=True)
                    self._refusals[link.host] = self._lost(link, f"did not answer within {GREET_S:g} s")
        if self._refusals:
            raise self._refused()
        return self._hellos

    def run(self, parts: Mapping[str, AgentPart]) -> LaunchOutcome:
        """Start the ranks and return how they ended."""
        for link in self._links:
            link.heard_at_s = time.monotonic()
            link.say(parts[link.host].to_json())
        while any(not link.ended for link in self._links):
            deadlines_s = [link.heard_at_s + LOST_S for link in self._links if not link.ended]
            if self._stop_at_s is not None and not self._stopped:
                deadlines_s.append(self._stop_at_s)
            self._turn(max(0.0, min(deadlines_s) - time.monotonic()))
            self._check()
        self._finish()
        return self.outcome

    def close(self) -> None:
        """Let go of all agents and write the rest of the output."""
        for link in self._links:
            if not link.ended:
                link.close()
        for sink in self._sinks.values():
            sink.close()

    def _turn(self, timeout_s: float) -> None:
        """Handle what comes within the time."""
        # Output that nobody takes is left where it is: memory must not fill with it.
        congested = any(sink.backlog_bytes > _BACKLOG_BYTES for sink in self._sinks.values())
        with selectors.PollSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            for link in self._links:
                if congested:
                    link.heard_at_s = time.monotonic()
                elif not link.ended:
                    selector.register(link, selectors.EVENT_READ)
            for key, _ in selector.select(min(timeout_s, _BACKLOG_POLL_S) if congested else timeout_s):
                if isinstance(key.fileobj, Link):
                    self._read(key.fileobj)
                else:
                    self._forward()

    def _forward(self) -> None:
        for number in self._signals.read():
            self.outcome.interrupted = self.outcome.interrupted or number
            notify.stopping(f"stopped by {number.name}")
            self._stopped = True
            for link in self._links:
                if not link.ended:
                    link.stop(number, "failure" if self._has_failed else "user")

    @property
    def _has_failed(self) -> bool:
        return self.outcome.failure is not None and not self._in_order

    def _read(self, link: Link) -> None:
        for kind, content in link.read():
            if kind == "event":
                self._on_event(link, json.loads(content))
            elif kind != "beat":
                self._sinks[kind].put(content)
        if link.ended and link.host in self._hellos and link.done is None:
            self._fail(self._failure_of_end(link))
        elif link.ended and link.done is not None:
            link.close()

    def _on_event(self, link: Link, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "hello":
            self._hellos[link.host] = hello_from_event(event)
            link.agent_pid = event["pid"]
        elif kind == "started":
            self.outcome.pids |= {int(rank): pid for rank, pid in event["pids"].items()}
        elif kind == "running":
            self._running.add(link.host)
            if len(self._running) == len(self._links):
                notify.ready(len(self.outcome.pids), len(self._links))
        elif kind == "note":
            _log.info("%s", event["text"])
        elif kind == "warning":
            _log.warning("%s", event["text"])
        elif kind == "stopping" and not self._stopped:
            reason = f"is being stopped on its own host by {signal.Signals(event['signal']).name}"
            exit_code = 128 + event["signal"]
            self._in_order = self._in_order or self.outcome.failure is None
            self._fail(Failure(host=link.host, pid=link.agent_pid, exit_code=exit_code, reason=reason))
        elif kind == "failed" and link.host not in self._hellos:
            self._refusals[link.host] = failure_from_event(event)
        elif kind == "failed":
            self._fail(failure_from_event(event))
        elif kind == "done":
            link.done = event["exit_code"]
            if link.done and not self._stopped and link.host not in self._failed_hosts:
                # A signal on its own host ended it: no rank failed, and yet the job cannot go on.
                reason = f"was stopped on its own host and {describe_status(link.done)}"
                self._fail(Failure(host=link.host, pid=link.agent_pid, exit_code=link.done, reason=reason))

    def _fail(self, failure: Failure) -> None:
        """Take the first failure as the cause, unless it is an effect and a better one follows."""
        self._failed_hosts.add(failure.host)
        known = self.outcome.failure
        if known is None:
            self.outcome.failure = failure
            notify.stopping(failure.render())
            self._stop_at_s = time.monotonic() + (CAUSE_S if failure.exit_code == EXIT_COMM else 0.0)
        elif known.exit_code == EXIT_COMM and failure.exit_code != EXIT_COMM:
            self.outcome.failure = failure
            self._stop_at_s = time.monotonic()

    def _check(self) -> None:
        now_s = time.monotonic()
        for link in self._links:
            # Where words wait it was not the agent that was silent, but this process that did not get to run.
            if not link.ended and now_s - link.heard_at_s >= LOST_S and not readable(link.fileno()):
                link.close(kill=True)
                self._fail(self._lost(link, f"is lost: nothing was heard of it for {LOST_S:g} s"))
        if self._stop_at_s is not None and now_s >= self._stop_at_s and not self._stopped:
            self._stopped = True
            for link in self._links:
                if not link.ended and link.done is None:
                    link.stop(signal.SIGTERM, "host" if self._in_order else "failure")

    def _finish(self) -> None:
        failure, interrupted = self.outcome.failure, self.outcome.interrupted
        if interrupted is not None and (failure is None or failure.exit_code == EXIT_LAUNCH):
            self.outcome.exit_code = 128 + interrupted
        elif failure is not None:
            self.outcome.exit_code = failure.exit_code
        else:
            self.outcome.exit_code = max((link.done or 0 for link in self._links), default=0)

    def _failure_of_end(self, link: Link) -> Failure:
        """Return why a link ended without the agent's last word."""
        code = link.close()
        if link.broken is not None:
            return self._lost(link, f"is lost: {link.broken}")
        if code is not None and code > 128 and code != _SSH_FAILED:
            reason = describe_status(code)
            return Failure(host=link.host, pid=link.agent_pid, exit_code=code, reason=reason, tail=link.last_words())
        if link.agent_pid is not None:
            return self._lost(link, "is lost: the connection ended")
        started = "could not be started"
        return self._lost(link, started if code in (None, 0, _SSH_FAILED) else f"{started}: {describe_status(code)}")

    def _lost(self, link: Link, reason: str) -> Failure:
        words = link.last_words()
        hint = self._hint_for(words)
        if hint is None and link.agent_pid is not None:
            hint = f"is the host up? Ranks that still run there end within {LOST_S:g} s, when they miss the launcher"
        return Failure(host=link.host, pid=link.agent_pid, exit_code=EXIT_LAUNCH, reason=reason, tail=words, hint=hint)

    def _refused(self) -> LaunchError:
        refusals = [self._refusals[link.host] for link in self._links if link.host in self._refusals]
        lines = [f"{len(refusals)} of {len(self._links)} hosts cannot take part:"]
        for failure in refusals:
            lines.append(f"  {failure.host}: {failure.reason}")
            lines.extend(f"      {line}" for line in failure.tail)
        hints = {failure.hint: failure.host for failure in reversed(refusals) if failure.hint}
        hint = "; ".join(f"{host}: {text}" if len(hints) > 1 else text for text, host in reversed(hints.items()))
        error = LaunchError("\n".join(lines), hint=hint or None)
        error.exit_code = min((failure.exit_code for failure in refusals), default=EXIT_LAUNCH)
        return error
