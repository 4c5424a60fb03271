"""Where what a manifest asks for and what its launch would do disagree: warnings, for there may be reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from corebound.k8s.findings import Finding, error, items, join, mapping, warning
from corebound.k8s.pods import Container, Pod, pods_of
from corebound.k8s.quantity import mebibytes, parse_quantity
from corebound.k8s.render import HOME, LAUNCHERS, USER_ID
from corebound.k8s.rules.resources import limit
from corebound.k8s.values import planned_shm_bytes

# What a rank holds beside its weights: Python and torch, activations, a small KV cache.
RANK_BYTES = 700 << 20
_SHM = "/dev/shm"  # noqa: S108  the name of a mount
_WORKER = "spec.mpiReplicaSpecs.Worker"


def plan_rules(data: Mapping[str, Any], model_bytes: int | None) -> Iterator[Finding]:
    """Yield warnings for an MPIJob; `model_bytes` is the size of its weights, None when that is not known."""
    pods = {pod.role: pod for pod in pods_of(data)}
    spec = mapping(data, "spec")
    slots = spec.get("slotsPerWorker", 1)
    replicas = mapping(spec, "mpiReplicaSpecs", "Worker").get("replicas")
    if "Launcher" in pods:
        yield from _launcher(spec, pods["Launcher"])
    if "Worker" not in pods or not isinstance(slots, int) or not isinstance(replicas, int):
        return
    worker = pods["Worker"]
    boxes = [box for box in worker.containers if not box.is_init]
    if not boxes or slots < 1 or replicas < 1:
        return
    yield from _cpus(boxes[0], slots)
    yield from _shared_memory(worker, boxes[0], slots)
    yield from _memory(boxes[0], worker, slots, replicas, model_bytes)


def image_rules(pod: Pod) -> Iterator[Finding]:
    """Yield a warning for each image that is named by a tag."""
    for box in pod.containers:
        image = box.data.get("image")
        if isinstance(image, str) and "@sha256:" not in image:
            reason = f"{image} is a tag, which can be moved to other content: pin it as NAME@sha256:..."
            yield warning(join(box.path, "image"), reason, "plan/image-digest")


def _launcher(spec: Mapping[str, Any], launcher: Pod) -> Iterator[Finding]:
    if not mapping(spec, "runPolicy").get("activeDeadlineSeconds"):
        path = "spec.runPolicy.activeDeadlineSeconds"
        yield warning(path, "not found: a launch that hangs would hold its nodes for ever", "plan/deadline")
    if any("corebound-launcher" in box.arguments for box in launcher.containers):
        if launcher.argument("--wait_for_hosts") is None:
            reason = "no --wait_for_hosts: a worker that is not there yet fails the launch, or hangs it"
            yield warning(join(launcher.spec_path, "containers", 0, "args"), reason, "plan/wait-for-hosts")
        implementation = str(spec.get("mpiImplementation", "OpenMPI"))
        asked = launcher.argument("--launcher")
        if asked in LAUNCHERS.values() and asked != LAUNCHERS.get(implementation):
            reason = f"the launcher is told --launcher={asked}; the operator prepares for {implementation}"
            yield warning("spec.mpiImplementation", reason, "plan/launcher")
    home = "/root" if mapping(launcher.spec, "securityContext").get("runAsUser", USER_ID) == 0 else HOME
    keys = spec.get("sshAuthMountPath", "/root/.ssh")
    if keys != f"{home}/.ssh" and any("corebound-launcher" in box.arguments for box in launcher.containers):
        reason = f"expected {home}/.ssh, the home of the pods' user, found {keys}: ssh would not find its key"
        yield error("spec.sshAuthMountPath", reason, "plan/ssh-path")


def _cpus(box: Container, slots: int) -> Iterator[Finding]:
    cpus = parse_quantity(limit(box, "cpu"))
    if cpus is None:
        return
    if slots > cpus:
        reason = f"{slots} ranks on {float(cpus):g} CPUs of a worker: they would share cores and wait for each other"
        yield warning("spec.slotsPerWorker", reason, "plan/slots")
    elif cpus.denominator == 1 and int(cpus) % slots:
        reason = f"{slots} ranks on {int(cpus)} CPUs of a worker: some ranks get fewer, and all wait for those"
        yield warning("spec.slotsPerWorker", reason, "plan/slots")


def _shared_memory(worker: Pod, box: Container, slots: int) -> Iterator[Finding]:
    volumes = {volume.get("name"): (index, volume) for index, volume in items(worker.spec, "volumes")}
    mounted = [mount.get("name") for _, mount in items(box.data, "volumeMounts") if mount.get("mountPath") == _SHM]
    needed = planned_shm_bytes(slots)
    if not mounted or mounted[0] not in volumes:
        reason = f"nothing is mounted on {_SHM}, which then has 64Mi; {slots} ranks need {mebibytes(needed)}"
        yield warning(join(box.path, "volumeMounts"), reason, "plan/shm")
        return
    index, volume = volumes[mounted[0]]
    path = join(worker.spec_path, "volumes", index, "emptyDir")
    directory = mapping(volume, "emptyDir")
    if directory.get("medium") != "Memory":
        found = directory.get("medium") or "a disk"
        yield warning(join(path, "medium"), f"{_SHM} is expected in Memory, found {found}", "plan/shm")
        return
    size = parse_quantity(directory.get("sizeLimit"))
    most = parse_quantity(limit(box, "memory"))
    if size is not None and size < needed:
        reason = f"{directory['sizeLimit']} for {slots} ranks, which need {mebibytes(needed)}"
        yield warning(join(path, "sizeLimit"), reason, "plan/shm")
    if size is not None and most is not None and size >= most:
        reason = f"{directory['sizeLimit']} counts as memory of the container, whose limit is {limit(box, 'memory')}"
        yield warning(join(path, "sizeLimit"), reason, "plan/shm")


def _memory(box: Container, worker: Pod, slots: int, replicas: int, model_bytes: int | None) -> Iterator[Finding]:
    most = parse_quantity(limit(box, "memory"))
    if most is None or model_bytes is None:
        return
    weights = -(-model_bytes // replicas)
    needed = weights + slots * RANK_BYTES + planned_shm_bytes(slots)
    if most < needed:
        reason = (
            f"{limit(box, 'memory')} for {mebibytes(weights)} of weights, {slots} x {mebibytes(RANK_BYTES)} of "
            f"ranks and {mebibytes(planned_shm_bytes(slots))} of {_SHM}: expected {mebibytes(needed)} or more"
        )
        yield warning(join(box.path, "resources", "limits", "memory"), reason, "plan/memory")
