"""The logs of a job's pods as one stream of lines, each with its origin."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from corebound.errors import CoreboundError
from corebound.k8s.cluster import Cluster
from corebound.k8s.job import ContainerStatus, JobStatus, PodStatus

_END_OF_LOG_S = 10.0
# Names of the containers that do a pod's work; others, such as the one that fetches a model, are named in full.
_MAIN = ("launcher", "worker")


@dataclass(frozen=True)
class Line:
    """A line of a container's log; `is_note` marks what we say about the log itself."""

    origin: str
    text: str
    is_note: bool = False


@dataclass
class _Stream:
    origin: str
    thread: threading.Thread | None = None
    last_line_s: float | None = None
    last_stamp: str = ""


class LogStreams:
    """Follows every container that has started, each in a thread of its own; `update` tells of new ones."""

    def __init__(self, cluster: Cluster, *, roles: tuple[str, ...] = (), clock: Callable[[], float] = time.monotonic):
        self._cluster = cluster
        self._roles = roles
        self._clock = clock
        self._lines: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._streams: dict[tuple[str, str, int], _Stream] = {}

    def update(self, status: JobStatus) -> None:
        """Follow containers that have started since, and those whose log was cut while they run."""
        for pod in status.pods:
            if self._roles and pod.role not in self._roles:
                continue
            for container in pod.containers:
                if not container.started:
                    continue
                key = (pod.name, container.name, container.restarts)
                stream = self._streams.get(key)
                if stream is None:
                    stream = self._streams[key] = _Stream(_origin(pod, container, status))
                elif not container.running or (stream.thread is not None and stream.thread.is_alive()):
                    continue
                self._start(stream, status.namespace, pod.name, container.name)

    def lines(self) -> Iterator[Line]:
        """Yield what has come in, without waiting."""
        while True:
            try:
                yield self._lines.get_nowait()
            except queue.Empty:
                return

    def rest(self) -> Iterator[Line]:
        """Yield the lines up to the end of all logs, for at most ten seconds."""
        deadline = self._clock() + _END_OF_LOG_S
        for stream in self._streams.values():
            if stream.thread is not None:
                stream.thread.join(max(0.0, deadline - self._clock()))
        yield from self.lines()

    def _start(self, stream: _Stream, namespace: str, pod: str, container: str) -> None:
        # Read on with some overlap, so that nothing is lost; what has been read is known by its time.
        since_s = None if stream.last_line_s is None else max(1, round(self._clock() - stream.last_line_s) + 1)
        arguments = (stream, namespace, pod, container, since_s)
        stream.thread = threading.Thread(target=self._follow, args=arguments, daemon=True, name=f"log-{pod}")
        stream.thread.start()

    def _follow(self, stream: _Stream, namespace: str, pod: str, container: str, since_s: int | None) -> None:
        try:
            for stamped in self._cluster.log(namespace, pod, container, follow=True, since_s=since_s):
                stamp, _, text = stamped.partition(" ")
                if stamp <= stream.last_stamp:
                    continue
                stream.last_line_s, stream.last_stamp = self._clock(), stamp
                self._lines.put(Line(stream.origin, text))
        except CoreboundError as error:
            self._lines.put(Line(stream.origin, f"log interrupted: {error.message}", is_note=True))


def read_logs(cluster: Cluster, status: JobStatus, roles: tuple[str, ...] = ()) -> Iterator[Line]:
    """Yield what the pods of a job have written so far, launcher first; a log that cannot be read is a note."""
    for pod in status.pods:
        if roles and pod.role not in roles:
            continue
        for container in pod.containers:
            if not container.started:
                continue
            name = _origin(pod, container, status)
            try:
                for text in cluster.log(status.namespace, pod.name, container.name, follow=False, since_s=None):
                    yield Line(name, text)
            except CoreboundError as error:
                yield Line(name, f"log not readable: {error.message}", is_note=True)


def _origin(pod: PodStatus, container: ContainerStatus, status: JobStatus) -> str:
    """Return the pod's name without the job's, and the container's where it is not the main one."""
    name = pod.name.removeprefix(f"{status.name}-")
    return name if container.name in _MAIN else f"{name}/{container.name}"
