"""The launcher's end of the way to one agent elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time

from corebound.launcher.frames import BEAT_S, FrameReader, Kind
from corebound.launcher.queuewriter import QueueWriter
from corebound.launcher.signals import StopCause
from corebound.launcher.streams import Pump

_READ_BYTES = 1 << 18
_END_S = 3.0


class Link:
    """A way to one agent. `ended` is set when nothing more will come; `done` when the agent said how its ranks ended.

    `process` is what carries the link, such as ssh; its standard error is kept, because it tells why a link broke.
    Where one process started all agents, `words` is what it says.
    """

    def __init__(
        self,
        host: str,
        read_fd: int,
        write_fd: int,
        process: subprocess.Popen[bytes] | None = None,
        words: Pump | None = None,
    ) -> None:
        self.host = host
        self.ended = False
        self.done: int | None = None
        self.agent_pid: int | None = None
        self.heard_at_s = time.monotonic()
        self.broken: str | None = None
        self._read_fd = read_fd
        self._closed = False
        self._code: int | None = None
        self._process = process
        self._reader = FrameReader()
        self._writer = QueueWriter(write_fd, idle=b"{}\n", idle_s=BEAT_S)
        self._words = words
        if process is not None and process.stderr is not None:
            self._words = Pump(os.dup(process.stderr.fileno()), None, None)
            process.stderr.close()

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._read_fd

    def say(self, line: str) -> None:
        """Send the agent a line; never waits."""
        self._writer.put(line.encode() + b"\n")

    def stop(self, number: signal.Signals, cause: StopCause) -> None:
        """Have the agent bring its ranks down."""
        self.say(json.dumps({"signal": int(number), "cause": cause}))

    def read(self) -> list[tuple[Kind, bytes]]:
        """Return what came; sets `ended` at the end, and `broken` to the reason if what came makes no sense."""
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except OSError as error:
            self.broken, data = error.strerror, b""
        if not data:
            self.ended = True
            return []
        self.heard_at_s = time.monotonic()
        frames: list[tuple[Kind, bytes]] = []
        try:
            frames.extend(self._reader.feed(data))
        except ValueError as error:
            self.broken, self.ended = str(error), True
        return frames

    def close(self, *, kill: bool = False) -> int | None:
        """Let go of the agent, which ends it if it still lives, and return the exit code of the carrying process."""
        if self._closed:
            return self._code
        self.ended = self._closed = True
        if kill and self._process is not None:
            self._process.kill()
        elif kill:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._read_fd)) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        # The thread must not write a sign of life to a descriptor that means something else by then.
        self._writer.close(_END_S, discard=kill)
        if self._process is None:
            os.close(self._read_fd)
            return None
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._words is not None:
            self._words.join(0.5)
        self._code = code if code >= 0 else 128 - code
        return self._code

    def last_words(self) -> tuple[str, ...]:
        """Return what the carrying process, or a shell before the agent, said."""
        noise = self._reader.noise.decode(errors="replace").split("\n")
        words = [] if self._words is None else self._words.tail()
        return tuple(line for line in (*noise, *words) if line.strip())
