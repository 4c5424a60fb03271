"""Logging: one setup function, standard error only, rank and host on every line of a rank."""

from __future__ import annotations

import logging
import sys
import time

ROOT = "corebound"


class _Formatter(logging.Formatter):
    def __init__(self, origin: str) -> None:
        super().__init__()
        self._origin = origin

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix(f"{ROOT}.")
        text = f"{clock} {record.levelname:<7} {self._origin}{name}: {record.getMessage()}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return text


def setup(level: str = "info", *, rank: int | None = None, world_size: int | None = None, host: str = "") -> None:
    """Send the package's log to standard error at `level`; a rank's lines start with `[r3/8 host]`.

    Calling it again replaces the earlier setup. Other packages' loggers are left alone.
    """
    origin = "" if rank is None else f"[r{rank}/{world_size} {host}] "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(origin))
    logger = logging.getLogger(ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; pass `__name__`."""
    return logging.getLogger(name)
