"""Manifests sent to a cluster and taken away again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from corebound.errors import ConfigError, HostError, LaunchError
from corebound.k8s.cluster import Cluster, Reference
from corebound.k8s.documents import Document
from corebound.k8s.findings import mapping
from corebound.k8s.job import job_reference, job_status
from corebound.k8s.render import JOB_LABEL

POLL_S = 0.5
# A definition that was sent just before becomes known within seconds.
DEFINITION_TIMEOUT_S = 30.0
# What pods may need to be scheduled, and to get a large image, before the job's own deadline begins.
START_S = 600.0


@dataclass(frozen=True)
class Applied:
    """What happened to an object: created, configured or unchanged; `respecified` a job that has pods already."""

    reference: Reference
    result: str
    respecified: bool = False


def references(documents: Sequence[Document], cluster: Cluster, namespace: str | None = None) -> list[Reference]:
    """Return which objects documents mean. Raises: ConfigError for one without a name, or of another namespace."""
    found = []
    for document in documents:
        metadata = mapping(document.data, "metadata")
        if not (document.kind and document.name and mapping(document.data).get("apiVersion")):
            raise ConfigError(
                f"{document.source}, line {document.line}: expected apiVersion, kind and metadata.name, found "
                f"{document.kind or 'no kind'}"
            )
        own = metadata.get("namespace")
        if namespace and own and own != namespace:
            raise ConfigError(
                f"{document.source}: {document.kind}/{document.name}: metadata.namespace: expected {namespace}, "
                f"as --namespace says, found {own}"
            )
        api_version = str(document.data["apiVersion"])
        found.append(Reference(api_version, document.kind, document.name, own or cluster.namespace))
    return found


def jobs_of(found: Sequence[Reference]) -> list[Reference]:
    """Return the MPIJobs among references."""
    return [reference for reference in found if reference.kind == "MPIJob"]


def wait_for_definition(
    cluster: Cluster,
    reference: Reference,
    *,
    timeout_s: float = DEFINITION_TIMEOUT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the cluster has the kind of an object. Raises: HostError when it still has not after `timeout_s`."""
    deadline = clock() + timeout_s
    while not cluster.knows(reference.api_version, reference.kind):
        if clock() >= deadline:
            raise HostError(
                f"{reference}: the cluster has no {reference.kind} of {reference.api_version} (waited {timeout_s:g} s)",
                hint="install the MPI operator: kubectl apply --server-side -f deploy/v2beta1/mpi-operator.yaml",
            )
        sleep(POLL_S)


def apply_documents(
    cluster: Cluster, documents: Sequence[Document], found: Sequence[Reference], *, force: bool = False
) -> list[Applied]:
    """Send documents in their order and return what happened to each.

    Raises: LaunchError for a job of that name that is finished, for it would not run again; ConfigError, HostError for
    what the cluster refuses.
    """
    applied = []
    for document, reference in zip(documents, found, strict=True):
        before = cluster.read(reference)
        if before is not None and reference.kind == "MPIJob":
            state = job_status(before, ()).state
            if state in ("Succeeded", "Failed"):
                raise LaunchError(
                    f"{reference} is there already, and {state}: it would not run again",
                    hint="--replace deletes it first; so does `corebound k8s delete`",
                )
        after = cluster.apply(reference, document.data, force=force)
        applied.append(_compared(reference, before, after))
    return applied


def _compared(reference: Reference, before: object, after: object) -> Applied:
    if before is None:
        return Applied(reference, "created")
    old, new = mapping(before, "metadata"), mapping(after, "metadata")
    if old.get("resourceVersion") == new.get("resourceVersion"):
        return Applied(reference, "unchanged")
    respecified = reference.kind == "MPIJob" and old.get("generation") != new.get("generation")
    return Applied(reference, "configured", respecified)


def delete_references(
    cluster: Cluster,
    found: Sequence[Reference],
    *,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Reference]:
    """Remove objects, the last first, and return those that were there, once they and the pods of jobs are gone.

    Raises: HostError when some still are there after `timeout_s`.
    """
    deleted = [reference for reference in reversed(found) if _delete(cluster, reference)]
    deadline = clock() + timeout_s
    while left := [text for reference in deleted for text in _left(cluster, reference)]:
        if clock() >= deadline:
            raise HostError(
                f"still there after {timeout_s:g} s: {', '.join(left)}",
                hint="a pod that does not end is on a node that does not answer: `kubectl get nodes`",
            )
        sleep(POLL_S)
    return deleted


def _delete(cluster: Cluster, reference: Reference) -> bool:
    # Without the operator's definition there cannot be a job either.
    return cluster.knows(reference.api_version, reference.kind) and cluster.delete(reference)


def _left(cluster: Cluster, reference: Reference) -> list[str]:
    left = [str(reference)] if cluster.read(reference) is not None else []
    if reference.kind == "MPIJob":
        pods = cluster.find("Pod", reference.namespace, labels=f"{JOB_LABEL}={reference.name}")
        left += [f"pod {mapping(pod, 'metadata').get('name')}" for pod in pods]
    return left


def default_timeout_s(job: object) -> float | None:
    """Return how long an MPIJob may take: its own deadline, and time for its pods to start; None without a deadline."""
    deadline_s = mapping(job, "spec", "runPolicy").get("activeDeadlineSeconds")
    return deadline_s + START_S if isinstance(deadline_s, int) else None


def job_of(target: str, documents: Sequence[Document] | None, cluster: Cluster, namespace: str | None) -> Reference:
    """Return the one job that a name, or the documents of a manifest, mean. Raises: ConfigError for none or several."""
    if documents is None:
        return job_reference(target, cluster.namespace)
    jobs = jobs_of(references(documents, cluster, namespace))
    if len(jobs) != 1:
        raise ConfigError(f"{target}: expected one MPIJob, found {len(jobs)}")
    return jobs[0]
