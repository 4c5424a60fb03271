"""Processes and segments of a job: how to find them and how to remove them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Collection, Iterable
from pathlib import Path

JOB_ID = re.compile(r"[a-z0-9]+")
SHM = Path("/dev/shm")  # noqa: S108  the kernel's shared memory, not a place for temporary files


def descendants(pid: int) -> set[int]:
    """Return all living processes below `pid`, whatever group or session they moved to."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _living_parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    queue = [pid]
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def _living_parent(entry: Path) -> int | None:
    try:
        # The command's name, in parentheses, may hold anything: fields are counted after it.
        fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None  # it ended while we looked
    return None if fields[0] in (b"Z", b"X") else int(fields[1])


def processes_of_job(job_id: str) -> set[int]:
    """Return the processes that were started with the job's id in their environment, other than this one."""
    marker = f"COREBOUND_JOB_ID={job_id}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue  # another user's, or ended
            if marker in environment.split(b"\0"):
                found.add(int(entry.name))
    return found


def jobs_on_cpus(cpus: Collection[int], own_job_id: str) -> dict[str, set[int]]:
    """Return the other jobs of this user that have ranks on some of these CPUs: the CPUs by the job's id."""
    found: dict[str, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            shared = os.sched_getaffinity(int(entry.name)) & set(cpus)
        except OSError:
            continue  # another user's, or ended
        variables = dict(line.split(b"=", 1) for line in environment.split(b"\0") if b"=" in line)
        job_id = variables.get(b"COREBOUND_JOB_ID", b"").decode(errors="replace")
        if job_id not in ("", own_job_id) and b"RANK" in variables and shared:
            found.setdefault(job_id, set()).update(shared)
    return found


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each process that still exists and is ours."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def remove_segments(job_id: str) -> list[str]:
    """Remove what the job left in /dev/shm and return the names."""
    if not JOB_ID.fullmatch(job_id):
        raise ValueError(f"not a job id: {job_id!r}")
    removed = []
    for path in SHM.glob(f"corebound.{job_id}.*"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            removed.append(path.name)
    return removed
