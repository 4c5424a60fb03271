"""Removes segments whose rank died between creating its segment and taking the name away."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from corebound.logs import get_logger

_LOGGER = get_logger(__name__)
MAGIC = b"cebound1"
_FLOOR = ".floor."
# A handshake takes milliseconds. Segments younger than this may belong to one that is under way, perhaps in this very
# process, where opening and closing the file would drop its lock.
_GRACE_S = 60.0


def remove_stale_segments(directory: Path, *, grace_s: float = _GRACE_S) -> list[Path]:
    """Remove this user's segments that no living process has locked; return their paths.

    Only files that carry the mark or the name of ours and are older than `grace_s` are looked at. What cannot be
    examined or removed stays: it belongs to someone else.
    """
    removed = []
    for path in directory.glob("corebound.*"):
        try:
            if _is_stale(path, grace_s):
                path.unlink()
                removed.append(path)
        except OSError as error:
            _LOGGER.debug("stale segments: %s: %s", path, error)
    if removed:
        _LOGGER.info("removed segments of runs that crashed: %s", ", ".join(path.name for path in removed))
    return removed


def floor_name(job_id: str, nonce: str) -> str:
    """Return the file name of the memory in which `bench allreduce` times its floor; it has no room for a mark."""
    return f"corebound.{job_id}{_FLOOR}{nonce}"


def _is_stale(path: Path, grace_s: float) -> bool:
    status = path.lstat()
    if status.st_uid != os.geteuid() or time.time() - status.st_mtime < grace_s:
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if _FLOOR not in path.name and os.read(descriptor, len(MAGIC)) != MAGIC:
            return False
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
