"""What an agent tells its launcher: one JSON object a line, or log lines where nobody listens."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from corebound.launcher.signals import describe_status
from corebound.logs import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The first rank that failed: `exit_code` is the launch's, `reason` a phrase that follows the rank's name."""

    host: str
    exit_code: int
    reason: str
    rank: int | None = None
    pid: int | None = None
    log: str | None = None
    tail: tuple[str, ...] = ()
    hint: str | None = None

    def render(self) -> str:
        """Return the message, with the last lines that the rank wrote to standard error."""
        who = f"the agent on {self.host}" if self.rank is None else f"rank {self.rank} on {self.host}"
        pid = f" (pid {self.pid})" if self.pid is not None else ""
        text = f"{who}{pid} {self.reason}"
        if self.log is not None:
            text += f"; its output is in {self.log}"
        if self.tail:
            text += "\nits last lines:\n" + "\n".join(f"    {line}" for line in self.tail)
        return f"{text}\n\nhint: {self.hint}" if self.hint else text


def failure_of_exit(*, host: str, rank: int, pid: int, code: int, log: str | None, tail: list[str]) -> Failure:
    """Return the failure of a rank that ended with `code` (128+n for signal n)."""
    hint = None
    if code == 137:
        hint = "if nobody killed it, memory ran out: the kernel log (dmesg) says so"
    elif code == 2 and any("unrecognized arguments" in line and "--local_rank" in line for line in tail):
        hint = "the script does not accept --local_rank: add --no_local_rank and read LOCAL_RANK from the environment"
    return Failure(
        host=host,
        rank=rank,
        pid=pid,
        exit_code=code,
        reason=describe_status(code),
        log=log,
        tail=tuple(tail),
        hint=hint,
    )


def failure_from_event(event: dict[str, Any]) -> Failure:
    """Return the failure that `EventWriter.failed` wrote."""
    fields = {name: value for name, value in event.items() if name != "event"}
    return Failure(**{**fields, "tail": tuple(fields["tail"])})


class EventWriter:
    """Sends events on a descriptor; None logs those that a person should see."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def started(self, pids: dict[int, int]) -> None:
        """All ranks were started: process id by rank."""
        self._send({"event": "started", "pids": {str(rank): pid for rank, pid in pids.items()}})

    def running(self) -> None:
        """Every rank of this node runs its command, where it was to run."""
        self._send({"event": "running"})

    def note(self, text: str) -> None:
        """Something worth knowing that is as it should be."""
        if not self._send({"event": "note", "text": text}):
            _log.info("%s", text)

    def warning(self, text: str) -> None:
        """Something that the user should know and that does not stop the launch."""
        if not self._send({"event": "warning", "text": text}):
            _log.warning("%s", text)

    def stopping(self, number: int) -> None:
        """A signal on this host is what brings the launch down."""
        self._send({"event": "stopping", "signal": int(number)})

    def failed(self, failure: Failure) -> None:
        """The first failure."""
        if not self._send({"event": "failed", **asdict(failure)}):
            _log.error("%s", failure.render())

    def done(self, exit_code: int) -> None:
        """All is stopped and removed."""
        self._send({"event": "done", "exit_code": exit_code})

    def _send(self, event: dict[str, Any]) -> bool:
        if self._fd is None:
            return False
        try:
            os.write(self._fd, json.dumps(event).encode() + b"\n")
        except BrokenPipeError:
            self._fd = None  # the launcher is gone; from here on the log is all there is
        return self._fd is not None
