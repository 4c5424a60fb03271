"""Watches the ranks of one node: the first failure stops all others, and nothing of the job is left behind.

Everything that can happen (a child ends, a signal or a word from the launcher arrives, a deadline passes) wakes one
selector; nothing polls. The agent is the reaper of all orphans below it, so "no child left" means that no process of
the job is left, wherever it hid.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from corebound.errors import EXIT_COMM, EXIT_LAUNCH
from corebound.launcher.corelist import render_core_list
from corebound.launcher.events import EventWriter, Failure, failure_of_exit
from corebound.launcher.processes import descendants, send
from corebound.launcher.ranks import RankProcess
from corebound.launcher.signals import SignalPipe, StopCause
from corebound.launcher.streams import readable

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WATCHED = (signal.SIGCHLD, *FORWARDED)
_CONTROL_FD = 0
# A rank that lost its peer may be gone before that peer has ended: so long the peer's own failure may still come.
_CAUSE_WAIT_S = 1.0
# A signal to all processes of a service comes several times: all of them are one.
_SAME_STOP_S = 0.5
# Who waits for a rank that is gone cannot finish what it does, however long a service may take to stop otherwise.
_FAILED_GRACE_S = 2.0
_KILL_REPEAT_S = 0.1
_KILL_LIMIT_S = 5.0


class Supervisor:
    """Runs a node's ranks to their end. Descriptor 0 carries the launcher's words and ends when the launcher does."""

    def __init__(
        self,
        *,
        host: str,
        grace_s: float,
        events: EventWriter,
        signals: SignalPipe,
        control: bytes = b"",
        lost_s: float | None = None,
        several_memory_nodes: bool = True,
    ) -> None:
        self._host = host
        self._grace_s = grace_s
        self._events = events
        self._signals = signals
        self._control = control
        self._lost_s = lost_s
        self._heard_at_s = time.monotonic()
        self._ranks: list[RankProcess] = []
        self._failure: Failure | None = None
        self._suspect: Failure | None = None
        self._suspect_until_s: float | None = None
        self._interrupt: signal.Signals | None = None
        # When the first word to stop came, by each of the ways that it can come.
        self._stopped_at_s: dict[str, float] = {}
        self._kill_at_s: float | None = None
        self._give_up_at_s: float | None = None
        # Where there is one node only, a refused policy changes nothing.
        self._policy_matters = several_memory_nodes
        self._selector = selectors.PollSelector()  # epoll refuses a regular file as standard input
        self._selector.register(signals, selectors.EVENT_READ, self._on_signal)
        self._selector.register(_CONTROL_FD, selectors.EVENT_READ, self._on_control)

    @property
    def stopping(self) -> bool:
        """Whether the job is being brought down."""
        return self._kill_at_s is not None

    def watch(self, rank: RankProcess) -> None:
        """Take over a rank that was just started."""
        self._ranks.append(rank)
        self._selector.register(rank.status_fd, selectors.EVENT_READ, lambda: self._on_status(rank))

    def run(self) -> int:
        """Wait until no process of the job is left and return the exit code of the launch."""
        self._obey()  # words that came together with the part, such as an interrupt during the start
        while self._reap():
            known_s = (self._kill_at_s, self._suspect_until_s, self._lost_at_s())
            deadlines_s = [at_s for at_s in known_s if at_s is not None]
            timeout_s = max(0.0, min(deadlines_s) - time.monotonic()) if deadlines_s else None
            for key, _ in self._selector.select(timeout_s):
                handler: Callable[[], None] = key.data
                handler()
            if self._suspect_until_s is not None and time.monotonic() >= self._suspect_until_s:
                self._blame_suspect()
            self._check_launcher()
            if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s and not self._kill():
                break
        for rank in self._ranks:
            rank.drain(timeout_s=0.5)
            self._require_status(rank)
        if self._failure is not None:
            return self._failure.exit_code
        return 0 if self._interrupt is None else 128 + self._interrupt

    def _lost_at_s(self) -> float | None:
        return None if self._lost_s is None else self._heard_at_s + self._lost_s

    def _check_launcher(self) -> None:
        lost_at_s = self._lost_at_s()
        # Where words wait it was not the launcher that was silent, but this process that did not get to run.
        if lost_at_s is not None and time.monotonic() >= lost_at_s and not readable(_CONTROL_FD):
            self._events.warning(f"{self._host}: nothing heard of the launcher for {self._lost_s:g} s")
            self._launcher_gone()

    def _launcher_gone(self) -> None:
        self._lost_s = None
        self._selector.unregister(_CONTROL_FD)
        self._interrupted(signal.SIGTERM, "control")

    def fail(self, failure: Failure) -> None:
        """Record the first failure and stop everything."""
        if self._record(failure):
            self.stop(signal.SIGTERM, has_failed=True)

    def _record(self, failure: Failure) -> bool:
        if self._failure is not None or self._interrupt is not None:
            return False
        self._failure = failure
        self._suspect_until_s = None
        self._events.failed(failure)
        return True

    def _suspect_or_fail(self, failure: Failure) -> None:
        """Fail, but give a rank that lost its peer some time for the peer to turn out as the cause."""
        if failure.exit_code != EXIT_COMM or self.stopping:
            self.fail(failure)
        elif self._suspect is None:
            self._suspect = failure
            self._suspect_until_s = time.monotonic() + _CAUSE_WAIT_S

    def _blame_suspect(self) -> None:
        if self._suspect is not None:
            self.fail(self._suspect)

    def _require_status(self, rank: RankProcess) -> None:
        """Take a rank for failed whose end we missed: nobody knows that it went well."""
        if rank.exit_code is None:
            ended = self._not_started(rank, "ended without a status")
            self._record(replace(ended, tail=tuple(rank.stderr.tail())))

    def stop(self, number: signal.Signals, way: str = "own", *, has_failed: bool = False) -> None:
        """Ask all processes of the job to stop; who asks a second time, by the same `way`, wants them killed.

        With `has_failed` a rank is gone, here or on another host.
        """
        now_s = time.monotonic()
        first_s = self._stopped_at_s.setdefault(way, now_s)
        if self.stopping:
            if now_s - first_s > _SAME_STOP_S:
                self._kill_at_s = now_s
            elif has_failed:
                self._hurry()
            return
        self._kill_at_s = now_s + self._grace_s
        self._give_up_at_s = self._kill_at_s + _KILL_LIMIT_S
        if has_failed:
            self._hurry()
        for rank in self._ranks:
            if rank.exit_code is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(rank.pid, number)
        grouped = {rank.pid for rank in self._ranks}
        send((pid for pid in descendants(os.getpid()) if _session(pid) not in grouped), number)

    def _hurry(self) -> None:
        """Leave a job that is being stopped no more time than one that has failed gets."""
        assert self._kill_at_s is not None
        self._kill_at_s = min(self._kill_at_s, time.monotonic() + _FAILED_GRACE_S)
        self._give_up_at_s = self._kill_at_s + _KILL_LIMIT_S

    def _kill(self) -> bool:
        """Kill what is left; return False when the kernel cannot end it."""
        left = descendants(os.getpid())
        now_s = time.monotonic()
        if self._give_up_at_s is not None and now_s > self._give_up_at_s:
            self._events.warning(f"processes {sorted(left)} on {self._host} do not end even when killed")
            return False
        send(left, signal.SIGKILL)
        self._kill_at_s = now_s + _KILL_REPEAT_S
        return True

    def _reap(self) -> bool:
        """Collect all children that have ended; return whether any process of the job is left."""
        ended: list[RankProcess] = []
        by_pid = {rank.pid: rank for rank in self._ranks if rank.exit_code is None}
        left = True
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                left = False
                break
            if pid == 0:
                break
            if pid in by_pid:
                code = os.waitstatus_to_exitcode(status)
                rank = by_pid[pid]
                rank.exit_code = rank.process.returncode = code if code >= 0 else 128 - code
                ended.append(rank)
        for rank in sorted(ended, key=_cause_first):
            self._on_end(rank)
        if any(rank.exit_code is None for rank in self._ranks):
            return left
        self._blame_suspect()
        if left and not self.stopping:
            self.stop(signal.SIGTERM)  # the ranks are done; what they started and left behind is not
        return left

    def _on_end(self, rank: RankProcess) -> None:
        if rank.status_fd >= 0:
            self._on_status(rank)
        if self._interrupt is not None and self.stopping and rank.exit_code == EXIT_COMM:
            self._hurry()  # it lost a peer while it finished what it does: so will the others
        if rank.exit_code and self._failure is None and self._interrupt is None:
            rank.stderr.join(0.2)  # its last words may still be in the pipe
            log = None if rank.log is None else str(rank.log.name)
            self._suspect_or_fail(
                failure_of_exit(
                    host=self._host,
                    rank=rank.part.rank,
                    pid=rank.pid,
                    code=rank.exit_code,
                    log=log,
                    tail=rank.stderr.tail(),
                )
            )

    def _on_status(self, rank: RankProcess) -> None:
        fd = rank.status_fd
        if fd < 0 or not rank.read_status():
            return
        self._selector.unregister(fd)
        report = rank.report or {}
        if "error" in report:
            self.fail(self._not_started(rank, f"could not be started: {report['error']}"))
        elif rank.binding is not None and report:
            expected = sorted(rank.binding.cpus)
            if report["cpus"] != expected:
                found = render_core_list(report["cpus"])
                self.fail(
                    self._not_started(rank, f"runs on CPUs {found} where {render_core_list(expected)} was to be set")
                )
            if report["policy_error"] and self._policy_matters:
                self._policy_matters = False
                self._events.warning(
                    f"{self._host}: memory policy refused ({report['policy_error']}); pages go where they are first "
                    "touched. In a container, add the capability SYS_NICE"
                )
        if not self.stopping and all(other.status_fd < 0 for other in self._ranks):
            self._events.running()

    def _not_started(self, rank: RankProcess, reason: str) -> Failure:
        return Failure(host=self._host, rank=rank.part.rank, pid=rank.pid, exit_code=EXIT_LAUNCH, reason=reason)

    def _on_signal(self) -> None:
        for number in self._signals.read():
            if number in FORWARDED:
                if not self.stopping:
                    # Ranks of other hosts should not have to find out by the end of ours.
                    self._events.stopping(number)
                self._interrupted(number, "signal")

    def _on_control(self) -> None:
        try:
            data = os.read(_CONTROL_FD, 4096)
        except OSError:  # a connection that broke
            data = b""
        if not data:
            self._launcher_gone()
            return
        self._heard_at_s = time.monotonic()
        self._control += data
        self._obey()

    def _obey(self) -> None:
        """Carry out the whole words that have arrived; the start of the next one stays."""
        *lines, self._control = self._control.split(b"\n")
        for word in map(json.loads, lines):
            if "signal" in word:  # an empty word is a sign of life
                cause: StopCause = word.get("cause", "user")
                self._interrupted(signal.Signals(word["signal"]), f"control: {cause}", has_failed=cause == "failure")

    def _interrupted(self, number: signal.Signals, way: str, *, has_failed: bool = False) -> None:
        self._blame_suspect()
        if self._failure is None and self._interrupt is None:
            self._interrupt = number
        self.stop(number, way, has_failed=has_failed)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _cause_first(rank: RankProcess) -> tuple[bool, bool, int]:
    """Order ranks that ended together: a kill before an error, and a lost peer (an effect) last."""
    code = rank.exit_code or 0
    return code == EXIT_COMM, code <= 128, rank.part.rank
