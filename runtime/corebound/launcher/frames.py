"""The stream from an agent to a launcher elsewhere: events, the ranks' output and signs of life in one channel.

It begins with a marker, because a remote shell may have said something first. Then come frames: one letter for the
kind, four bytes for the length, the content.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

from corebound.launcher.events import EventWriter, Failure
from corebound.launcher.queuewriter import QueueWriter

Kind = Literal["event", "stdout", "stderr", "beat"]
MARKER = b"\n\x01corebound-agent-1\n"
BEAT_S = 2.0
LOST_S = 10.0
_KINDS: dict[bytes, Kind] = {b"e": "event", b"o": "stdout", b"r": "stderr", b"b": "beat"}
_LETTERS = {kind: letter for letter, kind in _KINDS.items()}
_HEADER = struct.Struct(">cI")
_MAX_FRAME_BYTES = 1 << 28
_MAX_NOISE_BYTES = 1 << 16
_OUTPUT_LIMIT_BYTES = 1 << 20


def frame(kind: Kind, content: bytes = b"") -> bytes:
    """Return one frame."""
    return _HEADER.pack(_LETTERS[kind], len(content)) + content


class FrameReader:
    """Takes the stream in pieces and gives it back in frames."""

    def __init__(self) -> None:
        self._data = b""
        self._marked = False

    @property
    def noise(self) -> bytes:
        """What came before the marker, as far as it has not come yet."""
        return b"" if self._marked else self._data

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Yield the frames that `data` completes. Raises: ValueError when the stream is not one of ours."""
        self._data += data
        if not self._marked:
            _, marker, rest = self._data.partition(MARKER)
            if not marker:
                if len(self._data) > _MAX_NOISE_BYTES:
                    raise ValueError(f"no agent answered within {len(self._data)} bytes of output")
                return
            self._marked, self._data = True, rest
        while len(self._data) >= _HEADER.size:
            letter, length = _HEADER.unpack_from(self._data)
            if letter not in _KINDS or length > _MAX_FRAME_BYTES:
                raise ValueError(f"unreadable frame {self._data[: _HEADER.size]!r}")
            stop = _HEADER.size + length
            if len(self._data) < stop:
                return
            content, self._data = self._data[_HEADER.size : stop], self._data[stop:]
            yield _KINDS[letter], content


class FrameWriter(EventWriter):
    """Sends events and output as frames, and a sign of life when there is nothing else to say."""

    def __init__(self, fd: int) -> None:
        super().__init__(None)
        self._queue = QueueWriter(fd, idle=frame("beat"), idle_s=BEAT_S)
        self._queue.put(MARKER)

    def hello(self, facts: dict[str, Any]) -> None:
        """What the launcher must know of this node before it can make the plan."""
        self._send({"event": "hello", **facts})

    def stdout(self, data: bytes) -> None:
        """Pass on standard output, waiting while the launcher takes no more."""
        self._queue.put(frame("stdout", data), limit_bytes=_OUTPUT_LIMIT_BYTES)

    def stderr(self, data: bytes) -> None:
        """Pass on standard error, waiting while the launcher takes no more."""
        self._queue.put(frame("stderr", data), limit_bytes=_OUTPUT_LIMIT_BYTES)

    def failed(self, failure: Failure) -> None:
        """The first failure."""
        self._send({"event": "failed", **asdict(failure)})

    def close(self, timeout_s: float) -> None:
        """Send what is left."""
        self._queue.close(timeout_s)

    def _send(self, event: dict[str, Any]) -> bool:
        # An event never waits for the launcher: supervision must go on.
        self._queue.put(frame("event", json.dumps(event).encode()))
        return True
