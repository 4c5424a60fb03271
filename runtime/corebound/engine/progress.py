"""Progress of what takes long: one line on a terminal's standard error, elsewhere a logged line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from corebound.logs import get_logger

_INTERVAL_S = 0.1
_QUICK_S = 1.0  # what takes no longer shows nothing
_LOG_INTERVAL_S = 15.0
_log = get_logger(__name__)


class Progress:
    """Tells while it is entered how many bytes of a long work are done, how fast, and how long the rest will take.

    On a terminal that is a line that is wiped afterwards, elsewhere one in the log every 15 seconds. `terminal` None
    looks at the stream; a rank's standard error is a pipe, so its launcher must say what is behind. `enabled` False
    keeps silent.
    """

    def __init__(
        self, text: str, *, terminal: bool | None = None, enabled: bool = True, stream: TextIO | None = None
    ) -> None:
        self._text = text
        self._stream = stream or sys.stderr
        self._enabled = enabled
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._started_s = self._told_s = time.monotonic()
        self._shown = False

    def update(self, num_done: int, num_total: int) -> None:
        """Tell how much is done; calls that come too fast for the eye are skipped."""
        now = time.monotonic()
        elapsed_s = now - self._started_s
        wait_s = _INTERVAL_S if self._terminal else _LOG_INTERVAL_S
        if not self._enabled or elapsed_s < _QUICK_S or now - self._told_s < wait_s:
            return
        self._told_s = now
        line = f"{self._text} {_line(num_done, num_total, elapsed_s)}"
        if self._terminal:
            self._shown = True
            self._write(line)
        else:
            _log.info("%s", line)

    def _write(self, line: str) -> None:
        self._stream.write(f"\r\x1b[K{line}")
        self._stream.flush()

    def __enter__(self) -> Self:
        self._started_s = self._told_s = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._write("")


def _line(num_done: int, num_total: int, elapsed_s: float) -> str:
    """Return for example ` 25%, 1.0 of 4.0 GB, 0.5 GB/s, 6 s left`."""
    share = 100 * num_done // max(num_total, 1)
    rate = num_done / elapsed_s
    parts = [f"{share:3d}%", f"{num_done / 1e9:.1f} of {num_total / 1e9:.1f} GB", f"{rate / 1e9:.2f} GB/s"]
    if rate > 0:
        parts.append(f"{_duration(max(0, num_total - num_done) / rate)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
