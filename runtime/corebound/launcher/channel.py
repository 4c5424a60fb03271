"""The agent's end of the way to a launcher elsewhere, and the guardian that outlives a killed agent.

The agent keeps its usual descriptors: 0 brings the launcher's words, 1 and 2 take output. Behind 1 and 2 there are
pipes whose content goes to the launcher in frames.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import time
from typing import NoReturn

from corebound.errors import LaunchError
from corebound.launcher.frames import FrameWriter
from corebound.launcher.handshake import answer
from corebound.launcher.processes import descendants, remove_segments, send
from corebound.launcher.shim import set_death_signal
from corebound.launcher.streams import Pump

PR_SET_CHILD_SUBREAPER = 36
CONNECT_TIMEOUT_S = 5.0
WORD_TIMEOUT_S = 60.0
_FLUSH_S = 2.0
_CLEAN_S = 2.0


class Channel:
    """An open channel; `events` speaks to the launcher."""

    def __init__(self, out_fd: int) -> None:
        self.events = FrameWriter(out_fd)
        self._pending = b""
        self._pumps = [Pump(_replaced_by_pipe(fd), sink, None) for fd, sink in (
            (1, self.events.stdout), (2, self.events.stderr)
        )]  # fmt: skip

    def word(self, timeout_s: float = WORD_TIMEOUT_S) -> str | None:
        """Return the launcher's next line, None when the launcher is gone, or silent for so long.

        Signs of life are passed over: the launcher may wait for agents of other hosts for as long as it likes.
        """
        deadline_s = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(0, select.POLLIN)
        while True:
            line, end, rest = self._pending.partition(b"\n")
            if end:
                self._pending = rest
                if line != b"{}":
                    return line.decode()
                continue
            left_ms = (deadline_s - time.monotonic()) * 1000
            try:
                data = os.read(0, 1 << 16) if left_ms > 0 and poll.poll(left_ms) else b""
            except OSError:  # a connection that broke
                return None
            if not data:
                return None
            self._pending += data
            deadline_s = time.monotonic() + timeout_s

    def rest(self) -> bytes:
        """Return what was read beyond the last word."""
        return self._pending

    def close(self, exit_code: int) -> None:
        """Send the rest of the output and the word that all is done."""
        null = os.open(os.devnull, os.O_RDWR)
        for fd, pump in zip((1, 2), self._pumps, strict=True):
            os.dup2(null, fd)
            pump.join(_FLUSH_S)
        self.events.done(exit_code)
        self.events.close(_FLUSH_S)


def over_stdio() -> Channel:
    """Return a channel over standard input and output, where ssh carries them."""
    return Channel(os.dup(1))


def over_tcp(places: str, secret: str, identity: str) -> Channel:
    """Return a channel to the launcher at the first of `places` (HOST:PORT, joined by commas) that knows the secret.

    Raises: LaunchError when there is none.
    """
    problems = []
    for place in places.split(","):
        host, _, port = place.rpartition(":")
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S)
        except OSError as error:
            problems.append(f"{place}: {error.strerror or error}")
            continue
        try:
            answer(connection, secret, identity)
        except (OSError, ValueError) as error:
            connection.close()
            problems.append(f"{place}: {error}")
            continue
        connection.settimeout(None)
        os.dup2(connection.fileno(), 0)
        return Channel(os.dup(connection.detach()))
    raise LaunchError(
        f"the launcher cannot be reached from {socket.gethostname()}: {'; '.join(problems)}",
        hint="agents that MPI or Slurm starts connect back to the launcher: let them through the firewall",
    )


def peer_side_address() -> str | None:
    """Return the address of ours at the launcher's connection, None when descriptor 0 is no network connection."""
    try:
        with socket.socket(fileno=os.dup(0)) as connection:
            inet = connection.family in (socket.AF_INET, socket.AF_INET6)
            return str(connection.getsockname()[0]) if inet else None
    except OSError:
        return None


def guard() -> int:
    """Return in a child process, while this one waits to clean up behind it; write the job's id to the descriptor.

    A killed agent cannot clean up: its ranks die with it, but not what they had started, and segments stay.
    """
    parent = os.getpid()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    job_read, job_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(job_write)
        _wait_and_clean(pid, job_read)
    os.close(job_read)
    os.setsid()  # what kills our group must leave one of us
    set_death_signal(parent, signal.SIGTERM)
    return job_write


def _wait_and_clean(pid: int, job_fd: int) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: send([pid], signal.Signals(number)))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        # Orphans of the agent are our children now.
        deadline_s = time.monotonic() + _CLEAN_S
        while (left := descendants(os.getpid())) and time.monotonic() < deadline_s:
            send(left, signal.SIGKILL)
            time.sleep(0.02)
        os.set_blocking(job_fd, False)
        with contextlib.suppress(BlockingIOError):
            if job_id := os.read(job_fd, 100).decode():
                remove_segments(job_id)
    os._exit(code if code >= 0 else 128 - code)


def _replaced_by_pipe(fd: int) -> int:
    """Put the writing end of a pipe in the place of a descriptor and return the reading end."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    os.dup2(write_fd, fd)
    os.close(write_fd)
    return read_fd
