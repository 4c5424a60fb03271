"""A job followed to its end: what its pods write, what changes, and what it came to. It never waits without a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from corebound.errors import HostError, LaunchError
from corebound.k8s.cluster import Cluster, Reference
from corebound.k8s.job import SUBMITTED, JobStatus, read_status
from corebound.k8s.logs import Line, LogStreams

POLL_S = 1.0
# The operator sets its first condition at once; a minute without one means that it is not there, or refuses the job.
OPERATOR_TIMEOUT_S = 60.0
# How often in a row the cluster may fail to answer: a restart of an API server takes less than a minute.
MAX_FAILURES = 20


@dataclass
class Follower:
    """Follows one job. `line` gets what pods write, `note` what changes; `clock` and `sleep` are for tests."""

    cluster: Cluster
    reference: Reference
    line: Callable[[Line], None]
    note: Callable[[str], None]
    timeout_s: float | None = None
    roles: tuple[str, ...] = ()
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _told: set[str] = field(default_factory=set)

    def run(self) -> JobStatus:
        """Return what became of the job.

        Raises: LaunchError when it is not there, is deleted, is not taken up by an operator, or not done in time;
        HostError when the cluster stops answering.
        """
        streams = LogStreams(self.cluster, roles=self.roles, clock=self.clock)
        started = self.clock()
        status: JobStatus | None = None
        while True:
            status = self._read(status)
            streams.update(status)
            self._tell(status)
            for line in streams.lines():
                self.line(line)
            if status.is_finished:
                for line in streams.rest():
                    self.line(line)
                return status
            self._check_time(status, self.clock() - started)
            self.sleep(POLL_S)

    def _read(self, before: JobStatus | None) -> JobStatus:
        for _ in range(MAX_FAILURES - 1):
            try:
                status = read_status(self.cluster, self.reference)
                break
            except HostError as error:
                if before is None:
                    raise
                self._once(f"the cluster does not answer, trying again: {error.message}")
                self.sleep(POLL_S)
        else:
            status = read_status(self.cluster, self.reference)
        if status is None:
            verb = "is not there" if before is None else "was deleted before it was done"
            raise LaunchError(f"{self.reference} {verb}")
        return status

    def _tell(self, status: JobStatus) -> None:
        if status.state != SUBMITTED:
            self._once(f"{self.reference}: {status.state}" + (f": {status.message}" if status.message else ""))
        for pod in status.pods:
            where = f" on {pod.node}" if pod.node else ""
            self._once(f"{pod.name}: {pod.phase}{where}{', ready' if pod.ready else ''}")
        for text in (*status.problems, *status.events):
            self._once(text)

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.note(text)

    def _check_time(self, status: JobStatus, waited_s: float) -> None:
        if status.state == SUBMITTED and waited_s > OPERATOR_TIMEOUT_S:
            raise LaunchError(
                _list(f"{self.reference}: no MPI operator has taken it up within {OPERATOR_TIMEOUT_S:g} s", status),
                hint="does the operator run, and does it watch this namespace? `kubectl get pods -n mpi-operator`",
            )
        if self.timeout_s is not None and waited_s > self.timeout_s:
            raise LaunchError(
                _list(f"{self.reference}: not done within {self.timeout_s:g} s, but {status.state}", status),
                hint="it goes on: `corebound k8s status` shows it, `corebound k8s delete` ends it",
            )


def failure(status: JobStatus) -> LaunchError:
    """Return the error that a failed job is."""
    what = f"MPIJob {status.namespace}/{status.name} failed"
    if status.reason or status.message:
        what += f": {': '.join(part for part in (status.reason, status.message) if part)}"
    return LaunchError(_list(what, status), hint=f"corebound k8s logs {status.name} --namespace {status.namespace}")


def _list(text: str, status: JobStatus) -> str:
    return "\n  ".join([text, *status.problems, *status.events])
