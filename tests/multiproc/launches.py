"""Starts `corebound run` for tests and finds every process that came of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import corebound

SHM = Path("/dev/shm")
PACKAGE_DIR = Path(corebound.__file__).parents[1]


class Launch:
    """A running launch, marked in its environment so that all its processes can be found, however they hide."""

    def __init__(self, *args: str | Path, cwd: Path, env: dict[str, str] | None = None) -> None:
        self.marker = uuid.uuid4().hex
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("COREBOUND_", "OMP_"))}
        environ |= {"PYTHONPATH": str(PACKAGE_DIR), "LAUNCH_TEST": self.marker, **(env or {})}
        command = [str(arg) for arg in args]
        if command[0].startswith("-") or command[0].endswith(".py"):
            command = [sys.executable, "-m", "corebound", "run", "--no_local_rank", *command]
        # Under nohup, or in the background of a script, these tests would hand on signals that are ignored.
        command = ["env", "--default-signal=HUP,INT,QUIT,TERM", *command]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.stdout = ""
        self.stderr = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, timeout_s: float = 30.0) -> int:
        """Wait for the end, keep the output, and return the exit code as a shell shows it."""
        self.stdout, self.stderr = self.process.communicate(timeout=timeout_s)
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    def processes(self) -> dict[int, str]:
        """Every living process of the launch: command line by pid."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    if state not in "ZX" and f"LAUNCH_TEST={self.marker}".encode() in (
                        entry / "environ"
                    ).read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def agent_pid(self) -> int:
        return next(pid for pid, command in self.processes().items() if "corebound.launcher.agent" in command)

    def assert_nothing_left(self, timeout_s: float = 5.0) -> None:
        """No process of the launch lives, or is about to be ended within the time."""
        assert eventually(lambda: not self.processes(), timeout_s), self.processes()

    def kill_all(self) -> None:
        """End what a failed test left."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether the condition comes true within the time."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def segments(launch: Launch) -> list[str]:
    """Names of the segments that this launch has in shared memory; its ranks end them in LAUNCH_TEST."""
    return [path.name for path in SHM.glob(f"corebound.*.{launch.marker}")]
