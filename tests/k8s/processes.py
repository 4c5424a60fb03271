"""The cluster's processes: started in one cgroup, so that all are found and ended whatever became of their parents."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from k8s.layout import CGROUP, ClusterError, Layout
from k8s.machine import CGROUPS

END_TIMEOUT_S = 30.0
# Joins the cgroup before it becomes the program, so that no child of it can be missed.
JOIN = 'echo $$ > "$0" && exec "$@"'


def start(
    layout: Layout, name: str, *words: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a process that outlives this one and writes to its own log."""
    tasks = CGROUPS / "pids" / CGROUP / "cgroup.procs"
    tasks.parent.mkdir(exist_ok=True)
    layout.logs.mkdir(parents=True, exist_ok=True)
    command = ["sh", "-c", JOIN, str(tasks), *(str(word) for word in words)]
    with (layout.logs / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=layout.run,
            env={**os.environ, **(env or {})},
        )
    (layout.run / f"{name}.pid").write_text(f"{process.pid}\n", encoding="utf-8")
    return process


def ended(layout: Layout) -> list[str]:
    """Returns which of the processes that were started do not run any more."""
    alive = running()
    found = sorted(layout.run.glob("*.pid"))
    return [path.stem for path in found if int(path.read_text(encoding="utf-8")) not in alive]


def log_end(layout: Layout, name: str, num_lines: int = 15) -> str:
    """Returns the last lines of a process's log."""
    path = layout.logs / f"{name}.log"
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float, *, hint: str = "", pause_s: float = 0.2) -> None:
    """Returns when something is so; raises with what it was waiting for."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {timeout_s:.0f} s", hint=hint)
        time.sleep(pause_s)


def running() -> list[int]:
    """Returns the process ids of everything that the cluster started, containers included."""
    found: set[int] = set()
    for root in cgroups("pids"):
        found.update(int(word) for word in (root / "cgroup.procs").read_text(encoding="utf-8").split())
    return sorted(found)


def cgroups(hierarchy: str) -> Iterator[Path]:
    """Yields the cluster's cgroups in one hierarchy, innermost first."""
    top = CGROUPS / hierarchy / CGROUP
    for folder, _, _ in os.walk(top, topdown=False):
        yield Path(folder)


def end_all() -> None:
    """Ends every process of the cluster and removes its cgroups."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while found := running():
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {found} did not end within {END_TIMEOUT_S:.0f} s after SIGKILL")
        for number in found:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    # runc also makes them where no controller is: in the unified hierarchy beside those of version 1.
    for hierarchy in CGROUPS.iterdir():
        for folder in cgroups(hierarchy.name):
            remove_cgroup(folder, deadline)


def remove_cgroup(folder: Path, deadline: float) -> None:
    """Removes one empty cgroup; its last process may still be on its way out."""
    while True:
        try:
            folder.rmdir()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(f"{folder}: {error.strerror}") from error
            time.sleep(0.1)
        else:
            return
