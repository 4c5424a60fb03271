"""Jobs on the lab's nodes that run while something is done to a node, and what they leave behind."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lab.deployed import COMMAND, HOSTFILE, MODEL, PREFIX, Deployed

GENERATE = (COMMAND, "generate", "--model", MODEL, "--prompt", "The river", "--ignore-eos")
ACROSS = ("--hostfile", HOSTFILE)
# Most of a launch on a busy machine is Python reading its modules.
START_S = 300.0
_PROBE = """
import json, os, pathlib
found = {"processes": [], "segments": [str(path) for path in pathlib.Path("/dev/shm").glob("corebound*")]}
for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        environ = dict(word.split("=", 1) for word in (entry / "environ").read_text().split(chr(0)) if "=" in word)
        command = (entry / "cmdline").read_text().replace(chr(0), " ").strip()
        name = (entry / "comm").read_text().strip()
    except OSError:
        continue
    ours = "COREBOUND_JOB_ID" in environ or "corebound.launcher.agent" in command or name == "corebound"
    if command and ours and int(entry.name) != os.getpid():
        rank = int(environ["RANK"]) if "COREBOUND_JOB_ID" in environ and "RANK" in environ else None
        found["processes"].append({"pid": int(entry.name), "rank": rank, "name": name, "command": command[:200]})
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Process:
    """A process of a job: a rank; or with rank None an agent, its guardian, or the launcher, named `corebound`."""

    pid: int
    rank: int | None
    name: str
    command: str


class Job:
    """A command that was started on a node and whose output is read while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.stdout = ""
        self.stderr = ""
        assert process.stdout is not None and process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(process.stdout, "stdout"), daemon=True),
            threading.Thread(target=self._read, args=(process.stderr, "stderr"), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def wait_for_output(self) -> None:
        """Returns when something was printed: then all ranks are at work."""
        assert eventually(lambda: self.stdout or self.process.poll() is not None, START_S), self.stderr
        assert self.process.poll() is None, f"it has ended already\n{self.stdout}\n{self.stderr}"

    def end(self, timeout_s: float) -> int:
        """Returns the exit code; a job that lives longer than that is a failure."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s\n{self.stderr}") from None
        for reader in self._readers:
            reader.join(10)
        return code

    def _read(self, stream: IO[str], name: str) -> None:
        while text := stream.read(1):
            setattr(self, name, getattr(self, name) + text)


def start(command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Starts a command on this machine, with pipes for its output."""
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, cwd=cwd, env=env, stdin=null, stdout=pipe, stderr=pipe, text=True)


def generation(lab: Deployed, *words: str, num_tokens: int = 4000, on: str = "node1", **environ: str) -> Job:
    """Starts a generation across the nodes that lasts for minutes, and returns it once all ranks are at work."""
    command = (*GENERATE, "--max-new-tokens", str(num_tokens), *ACROSS, *words)
    job = Job(lab.start(on, *command, **environ))
    job.wait_for_output()
    return job


def look(lab: Deployed, name: str) -> tuple[list[Process], list[str]]:
    """Returns the processes of jobs on a node, and the names of their segments in /dev/shm."""
    found = json.loads(lab.podman.execute(name, f"{PREFIX}/venv/bin/python", "-c", _PROBE))
    return [Process(**process) for process in found["processes"]], found["segments"]


def rank_pid(lab: Deployed, name: str, rank: int) -> int:
    """Returns the process id, on its node, of a rank of the one job that runs there."""
    [pid] = [process.pid for process in look(lab, name)[0] if process.rank == rank]
    return pid


def left_behind(lab: Deployed) -> dict[str, tuple[list[Process], list[str]]]:
    """Returns what jobs have left on the nodes, by the node's name; nodes with nothing are not listed."""
    found = {node.name: look(lab, node.name) for node in lab.nodes}
    return {name: (processes, segments) for name, (processes, segments) in found.items() if processes or segments}


def eventually(condition: Callable[[], object], timeout_s: float) -> bool:
    """Returns whether the condition came true within the time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.1)
    return True
