"""What the MPI operator asks of a job beyond its schema. It says so in an event only, and then does nothing.

Source: ValidateMPIJob of mpi-operator v0.8.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from corebound.config.suggest import nearest
from corebound.k8s.findings import Finding, error, join, mapping, words
from corebound.k8s.values import CLEAN_PODS, DNS_LABEL, MAX_LABEL

RULE = "operator"
ROLES = ("Launcher", "Worker")
RESTART_POLICIES = ("Never", "OnFailure")
CREATION_POLICIES = ("AtStartup", "WaitForWorkersReady")
MANAGERS = ("kubeflow.org/mpi-operator", "kueue.x-k8s.io/multikueue")
_NOT_NEGATIVE = ("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished")


def operator_rules(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what the operator would refuse in an MPIJob."""
    spec = mapping(data, "spec")
    policy = mapping(spec, "runPolicy")
    yield from _choice(policy, "spec.runPolicy.cleanPodPolicy", CLEAN_PODS)
    yield from _choice(policy, "spec.runPolicy.managedBy", MANAGERS)
    yield from _choice(spec, "spec.launcherCreationPolicy", CREATION_POLICIES)
    for name in _NOT_NEGATIVE:
        value = policy.get(name)
        if isinstance(value, int) and value < 0:
            yield error(f"spec.runPolicy.{name}", f"expected 0 or more, found {value}", RULE)
    slots = spec.get("slotsPerWorker")
    if isinstance(slots, int) and slots < 1:
        yield error("spec.slotsPerWorker", f"expected 1 or more, found {slots}", RULE)
    yield from _roles(mapping(spec, "mpiReplicaSpecs"))
    yield from _name(data, mapping(spec, "mpiReplicaSpecs", "Worker").get("replicas"))


def _choice(data: Mapping[str, Any], path: str, valid: tuple[str, ...]) -> Iterator[Finding]:
    name = path.rpartition(".")[2]
    value = data.get(name)
    if isinstance(value, str) and value not in valid:
        close = nearest(value, valid) or nearest(value.capitalize(), valid)
        hint = f"; did you mean `{close}`?" if close else ""
        yield error(path, f"expected {words(valid)}, found {value!r}{hint}", RULE)


def _roles(roles: Mapping[str, Any]) -> Iterator[Finding]:
    path = "spec.mpiReplicaSpecs"
    for name in roles:
        if name not in ROLES:
            yield error(join(path, str(name)), f"expected {words(ROLES)}, found {name!r}", RULE)
    if "Launcher" not in roles:
        yield error(f"{path}.Launcher", "expected exactly one launcher, found none", RULE)
    for name in ROLES:
        role = mapping(roles, name)
        if not role:
            continue
        replicas = role.get("replicas", 1)
        if name == "Launcher" and replicas != 1:
            yield error(f"{path}.Launcher.replicas", f"expected exactly one launcher, found {replicas}", RULE)
        if name == "Worker" and (not isinstance(role.get("replicas"), int) or role["replicas"] < 1):
            yield error(f"{path}.Worker.replicas", f"expected 1 or more, found {role.get('replicas')}", RULE)
        yield from _choice(role, f"{path}.{name}.restartPolicy", RESTART_POLICIES)
        containers = mapping(role, "template", "spec").get("containers")
        if not containers:
            yield error(f"{path}.{name}.template.spec.containers", "expected at least one, found none", RULE)


def _name(data: Mapping[str, Any], replicas: object) -> Iterator[Finding]:
    name = mapping(data, "metadata").get("name")
    if not isinstance(name, str):
        yield error("metadata.name", "expected, not found", RULE)
        return
    worker = f"{name}-worker-{replicas - 1 if isinstance(replicas, int) and replicas > 0 else 0}"
    if DNS_LABEL.fullmatch(worker) is None:
        yield error("metadata.name", f"expected a-z, 0-9 and -, a letter first, found {name!r}", RULE)
    elif len(worker) > MAX_LABEL:
        reason = f"{worker}, the last worker's name, has {len(worker)} characters, at most {MAX_LABEL} are allowed"
        yield error("metadata.name", reason, RULE)
