"""Keeps a few rank processes alive and calls functions on all of them: many checks for the price of one start.

Functions must be importable by name (a module on pytest's `pythonpath`); arguments and results must pickle.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from corebound import native_ccl
from corebound.native_ccl import CclUnavailableError

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["torch", "torch.distributed", "multiproc.rank_harness"]
_CONTEXT.set_forkserver_preload(_PRELOADED)
SHM = Path("/dev/shm")


def preload(*modules: str) -> None:
    """Let ranks begin with more modules imported; it counts if no rank has been started yet."""
    _CONTEXT.set_forkserver_preload([*_PRELOADED, *modules])


def _lack_of_ccl() -> str:
    try:
        native_ccl.require()
    except CclUnavailableError as error:
        return error.message
    return ""


needs_ccl = pytest.mark.skipif(
    bool(_lack_of_ccl()), reason=f"this machine lacks oneCCL, to be had with make setup native: {_lack_of_ccl()}"
)
HOST_LINKS = [pytest.param("tcp"), pytest.param("gloo"), pytest.param("ccl", marks=needs_ccl)]


@dataclass(frozen=True)
class Outcome:
    """What a rank's function returned, or the name and text of what it raised."""

    value: Any = None
    error_type: str = ""
    error: str = ""
    trace: str = ""


class Ranks:
    """The processes of one job. Use `start_ranks`."""

    def __init__(
        self, num_ranks: int, environment: dict[str, str], shm_of: Callable[[int], Path | None] = lambda _: None
    ) -> None:
        self.job_id = f"test{secrets.token_hex(4)}"
        self.processes: list[Any] = []
        self._pipes: list[Connection] = []
        common = {
            "WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": "1",
            "COREBOUND_JOB_ID": self.job_id,
            **environment,
        }
        for rank in range(num_ranks):
            ours, theirs = _CONTEXT.Pipe()
            own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = _CONTEXT.Process(target=_serve, args=(theirs, own, list(sys.path), shm_of(rank)), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self._pipes.append(ours)

    def start(self, function: Callable[..., Any], *args: Any, ranks: list[int] | None = None, **kwargs: Any) -> None:
        """Begin `function(*args, **kwargs)` on every rank, or on `ranks`."""
        for rank in self._all(ranks):
            self._pipes[rank].send((function, args, kwargs))

    def finish(self, *, ranks: list[int] | None = None, timeout_s: float = 30) -> list[Outcome]:
        """Return the outcomes of the functions begun, in rank order."""
        outcomes = []
        for rank in self._all(ranks):
            if not self._pipes[rank].poll(timeout_s):
                raise TimeoutError(f"rank {rank} did not finish within {timeout_s} s")
            outcomes.append(self._pipes[rank].recv())
        return outcomes

    def is_finished(self, rank: int) -> bool:
        """Return whether what `rank` began has an outcome."""
        return self._pipes[rank].poll(0)

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = 30, **kwargs: Any) -> list[Any]:
        """Return what `function(*args, **kwargs)` returns on every rank; an exception there fails the test."""
        self.start(function, *args, **kwargs)
        outcomes = self.finish(timeout_s=timeout_s)
        for rank, outcome in enumerate(outcomes):
            assert not outcome.error_type, f"rank {rank}:\n{outcome.trace}"
        return [outcome.value for outcome in outcomes]

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a rank."""
        os.kill(self.processes[rank].pid, number)

    def segments(self) -> list[str]:
        """Return the names that this job has in /dev/shm."""
        return sorted(path.name for path in SHM.glob(f"corebound.{self.job_id}.*"))

    def close(self) -> None:
        """End all processes."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()

    def _all(self, ranks: list[int] | None) -> list[int]:
        return list(range(len(self._pipes))) if ranks is None else ranks


@contextlib.contextmanager
def start_ranks(num_ranks: int, **environment: str) -> Iterator[Ranks]:
    """Start processes with the environment of ranks; at the end none is left, and no segment of theirs."""
    job = Ranks(num_ranks, environment)
    try:
        yield job
    finally:
        job.close()
        left = job.segments()
        for name in left:
            (SHM / name).unlink()
    assert left == [], f"left in {SHM}: {left}"


@contextlib.contextmanager
def start_hosts(hosts: list[list[int]], **environment: str) -> Iterator[Ranks]:
    """Start ranks that share memory with those of their own list only, as on several hosts; the network is loopback.

    Skips the test where a process may not have a /dev/shm of its own.
    """
    if os.geteuid() != 0:
        pytest.skip("this machine lacks the right to mount: each host gets a /dev/shm of its own")
    host_of = {rank: number for number, members in enumerate(hosts) for rank in members}
    with tempfile.TemporaryDirectory(prefix="corebound-test-hosts-", dir=SHM) as directory:
        places = [Path(directory) / f"host{number}" for number in range(len(hosts))]
        for place in places:
            place.mkdir()
        job = Ranks(len(host_of), environment, lambda rank: places[host_of[rank]])
        try:
            start = job.finish(timeout_s=60)
            if any(outcome.error_type == "HostError" for outcome in start):
                pytest.skip(f"this machine lacks the right to mount: {start[0].error}")
            yield job
        finally:
            job.close()
            left = [path.name for place in places for path in place.iterdir()]
        assert left == [], f"left in shared memory: {left}"


def _serve(pipe: Connection, environment: dict[str, str], path: list[str], shm: Path | None) -> None:
    sys.path[:] = path
    os.environ.update(environment)
    if shm is not None:
        # Before torch starts threads, which would keep the view that they were born with.
        from corebound.comm import fake_hosts

        try:
            fake_hosts.enter(shm)
            pipe.send(Outcome())
        except Exception as error:
            pipe.send(Outcome(error_type=type(error).__name__, error=str(error)))
    import torch

    torch.set_num_threads(1)
    while (request := pipe.recv()) is not None:
        function, args, kwargs = request
        try:
            outcome = Outcome(value=function(*args, **kwargs))
        except Exception as error:
            outcome = Outcome(error_type=type(error).__name__, error=str(error), trace=traceback.format_exc())
        pipe.send(outcome)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
