"""What became of a job and of its pods, in words, from what the API server says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corebound.k8s.cluster import Cluster, Reference
from corebound.k8s.definition import API_VERSION
from corebound.k8s.findings import items, mapping
from corebound.k8s.render import JOB_LABEL, ROLE_LABEL

INDEX_LABEL = "training.kubeflow.org/replica-index"
SUBMITTED = "Submitted"
# The operator's conditions, the one that decides first.
_CONDITIONS = ("Failed", "Succeeded", "Suspended", "Restarting", "Running", "Created")
_NUM_EVENTS = 10
_HARMLESS_WAITING = ("ContainerCreating", "PodInitializing")


@dataclass(frozen=True, kw_only=True)
class ContainerStatus:
    """A container of a pod; `started` is whether it has written, or may write, a log."""

    name: str
    started: bool
    running: bool
    restarts: int


@dataclass(frozen=True, kw_only=True)
class PodStatus:
    """A pod of a job. `problem` is what keeps it from running, or how it ended, empty when nothing is wrong."""

    name: str
    role: str
    index: int | None
    node: str
    phase: str
    ready: bool
    restarts: int
    problem: str
    containers: tuple[ContainerStatus, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A job: `state` is the operator's deciding condition, or Submitted as long as the operator has set none."""

    name: str
    namespace: str
    state: str
    reason: str
    message: str
    started: str | None
    finished: str | None
    pods: tuple[PodStatus, ...]
    events: tuple[str, ...]

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("Succeeded", "Failed")

    @property
    def problems(self) -> list[str]:
        """What is wrong with pods, each with the pod's name."""
        return [f"{pod.name}: {pod.problem}" for pod in self.pods if pod.problem]


def job_reference(name: str, namespace: str) -> Reference:
    """Return the reference to an MPIJob."""
    return Reference(API_VERSION, "MPIJob", name, namespace)


def read_status(cluster: Cluster, reference: Reference) -> JobStatus | None:
    """Return what became of a job, None when it is not there."""
    data = cluster.read(reference)
    if data is None:
        return None
    pods = cluster.find("Pod", reference.namespace, labels=f"{JOB_LABEL}={reference.name}")
    events = cluster.find("Event", reference.namespace, fields="type=Warning")
    return job_status(data, pods, events)


def job_status(
    data: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]] = ()
) -> JobStatus:
    """Return what an MPIJob, its pods and the events of its namespace say together."""
    status = mapping(data, "status")
    metadata = mapping(data, "metadata")
    conditions = {entry.get("type"): entry for _, entry in items(status, "conditions") if entry.get("status") == "True"}
    state = next((name for name in _CONDITIONS if name in conditions), SUBMITTED)
    condition = conditions.get(state, {})
    found = sorted((pod_status(pod) for pod in pods), key=lambda pod: (pod.role, pod.index or 0, pod.name))
    return JobStatus(
        name=str(metadata.get("name", "")),
        namespace=str(metadata.get("namespace", "")),
        state=state,
        reason=str(condition.get("reason", "")),
        message=str(condition.get("message", "")),
        started=status.get("startTime"),
        finished=status.get("completionTime"),
        pods=tuple(found),
        events=tuple(_events(events, metadata, {pod.name for pod in found})),
    )


def pod_status(data: Mapping[str, Any]) -> PodStatus:
    """Return what a pod says of itself."""
    metadata, status = mapping(data, "metadata"), mapping(data, "status")
    labels = mapping(metadata, "labels")
    index = str(labels.get(INDEX_LABEL, ""))
    boxes = [box for key in ("initContainerStatuses", "containerStatuses") for _, box in items(status, key)]
    is_true = {entry.get("type") for _, entry in items(status, "conditions") if entry.get("status") == "True"}
    role = str(labels.get(ROLE_LABEL, ""))
    return PodStatus(
        name=str(metadata.get("name", "")),
        role=role,
        # The operator counts launchers as well, but there is only one.
        index=int(index) if index.isdigit() and role == "worker" else None,
        node=str(mapping(data, "spec").get("nodeName", "")),
        phase=str(status.get("phase", "Unknown")),
        ready="Ready" in is_true,
        restarts=sum(int(box.get("restartCount", 0)) for box in boxes),
        problem="; ".join(_problems(data, boxes)),
        containers=tuple(_container(box) for box in boxes),
    )


def _container(box: Mapping[str, Any]) -> ContainerStatus:
    running, ended = mapping(box, "state", "running"), mapping(box, "state", "terminated")
    restarts = int(box.get("restartCount", 0))
    return ContainerStatus(
        name=str(box.get("name", "")), started=bool(running or ended), running=bool(running), restarts=restarts
    )


def _problems(data: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    status = mapping(data, "status")
    # Evicted, TopologyAffinityError, SMTAlignmentError, DeadlineExceeded: the kubelet's verdict on the pod as a whole.
    if status.get("reason"):
        yield _with_message(str(status["reason"]), status.get("message"))
    for _, entry in items(status, "conditions"):
        if entry.get("type") == "PodScheduled" and entry.get("status") == "False":
            yield _with_message(str(entry.get("reason", "not scheduled")), entry.get("message"))
    for box in boxes:
        name = box.get("name")
        waiting = mapping(box, "state", "waiting")
        if waiting.get("reason") and waiting["reason"] not in _HARMLESS_WAITING:
            yield f"container {name}: {_with_message(str(waiting['reason']), waiting.get('message'))}"
        ended = mapping(box, "state", "terminated") or mapping(box, "lastState", "terminated")
        if ended.get("exitCode"):
            reason = _with_message(str(ended.get("reason", "Error")), ended.get("message"))
            yield f"container {name} ended with exit code {ended['exitCode']}: {reason}"


def _with_message(reason: str, message: object) -> str:
    return f"{reason}: {' '.join(str(message).split())}" if message else reason


def _events(events: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any], pods: set[str]) -> Iterator[str]:
    """Yield the latest warnings that concern a job: mounts that fail, what the operator refuses."""
    job = str(metadata.get("name", ""))
    concerned = []
    for event in events:
        about = mapping(event, "involvedObject")
        is_job = about.get("kind") in ("MPIJob", "Job") and about.get("name") in (job, f"{job}-launcher")
        # Events outlive an object: those of an older job of that name are none of ours.
        is_ours = about.get("kind") != "MPIJob" or about.get("uid") in (None, metadata.get("uid"))
        if (is_job and is_ours) or about.get("name") in pods:
            when = str(event.get("lastTimestamp") or event.get("eventTime") or "")
            concerned.append((when, about, event))
    for _, about, event in sorted(concerned, key=lambda entry: entry[0])[-_NUM_EVENTS:]:
        said = _with_message(str(event.get("reason", "")), event.get("message"))
        yield f"{about.get('kind')} {about.get('name')}: {said}"
