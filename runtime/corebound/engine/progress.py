"""One line of progress on a terminal's standard error; nothing where nobody watches."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

_INTERVAL_S = 0.1


class Progress:
    """Shows `text` with a percentage while it is entered, and wipes it afterwards.

    `enabled` None means only on a terminal; a rank's standard error is a pipe, so its launcher must say what is behind.
    """

    def __init__(self, text: str, *, enabled: bool | None = None, stream: TextIO | None = None) -> None:
        self._text = text
        self._stream = stream or sys.stderr
        self._enabled = self._stream.isatty() if enabled is None else enabled
        self._shown_s = 0.0

    def update(self, num_done: int, num_total: int) -> None:
        """Show how much is done; calls that come too fast for the eye are skipped."""
        now = time.monotonic()
        if self._enabled and (now - self._shown_s >= _INTERVAL_S or num_done == num_total):
            self._shown_s = now
            self._write(f"{self._text} {100 * num_done // max(num_total, 1):3d}%")

    def _write(self, line: str) -> None:
        self._stream.write(f"\r\x1b[K{line}")
        self._stream.flush()

    def __enter__(self) -> Self:
        if self._enabled:
            self._write(self._text)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._write("")
