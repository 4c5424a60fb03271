"""The schema of an MPIJob: from the operator's own definition where that is given, else a compact one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corebound.errors import ConfigError
from corebound.k8s.documents import read_documents
from corebound.k8s.findings import items, mapping

DEFINITION = "mpijobs.kubeflow.org"
API_VERSION = "kubeflow.org/v2beta1"
_TEXT = {"type": "string"}
_COUNT = {"type": "integer"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_METADATA = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "generateName": _TEXT,
        "namespace": _TEXT,
        "labels": _TEXTS,
        "annotations": _TEXTS,
        "finalizers": {"type": "array", "items": _TEXT},
        "ownerReferences": {"type": "array", "items": {"type": "object"}},
    },
}
_ROLE = {
    "type": "object",
    "properties": {"replicas": _COUNT, "restartPolicy": _TEXT, "template": {"type": "object"}},
}
_SCHEDULING = {
    "type": "object",
    "properties": {
        "minAvailable": _COUNT,
        "minResources": {"type": "object"},
        "priorityClass": _TEXT,
        "queue": _TEXT,
        "scheduleTimeoutSeconds": _COUNT,
    },
}
# What this project knows of an MPIJob. The pod templates are checked by the schemas of Kubernetes.
_COMPACT = {
    "type": "object",
    "required": ["mpiReplicaSpecs"],
    "properties": {
        "launcherCreationPolicy": _TEXT,
        "mpiImplementation": {"type": "string", "enum": ["OpenMPI", "Intel", "MPICH"]},
        "mpiReplicaSpecs": {"type": "object", "additionalProperties": _ROLE},
        "runLauncherAsWorker": {"type": "boolean"},
        "runPolicy": {
            "type": "object",
            "properties": {
                "activeDeadlineSeconds": _COUNT,
                "backoffLimit": _COUNT,
                "cleanPodPolicy": _TEXT,
                "managedBy": _TEXT,
                "schedulingPolicy": _SCHEDULING,
                "suspend": {"type": "boolean"},
                "ttlSecondsAfterFinished": _COUNT,
            },
        },
        "slotsPerWorker": _COUNT,
        "sshAuthMountPath": _TEXT,
    },
}


@dataclass(frozen=True)
class Definition:
    """A JSON schema of the whole object, and where it comes from (None: our compact one)."""

    schema: dict[str, Any]
    source: Path | None


def read_definition(path: Path | None) -> Definition:
    """Return the schema of an MPIJob from the operator's manifest or CustomResourceDefinition; None for our own.

    Raises: ConfigError when the file holds no definition of MPIJob v2beta1.
    """
    if path is None:
        return Definition(_whole(_strict(_COMPACT)), None)
    for document in read_documents(path):
        if document.kind != "CustomResourceDefinition" or document.name != DEFINITION:
            continue
        for _, version in items(document.data, "spec", "versions"):
            spec = mapping(version, "schema", "openAPIV3Schema", "properties", "spec")
            if version.get("name") == API_VERSION.rpartition("/")[2] and spec:
                return Definition(_whole(_strict(spec)), path)
    raise ConfigError(
        f"{path}: expected the CustomResourceDefinition {DEFINITION} with version v2beta1, found none",
        hint="it is in deploy/v2beta1/mpi-operator.yaml of the MPI operator's release",
    )


def _whole(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"enum": [API_VERSION]},
            "kind": {"enum": ["MPIJob"]},
            "metadata": _strict(_METADATA),
            "spec": spec,
            "status": {"type": "object"},
        },
    }


def _strict(schema: Any) -> Any:
    """Return a structural schema of OpenAPI as JSON schema that allows no other fields than those it names."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            strict[key] = {name: _strict(child) for name, child in value.items()}
        elif key not in ("default", "description") and not key.startswith("x-kubernetes-"):
            strict[key] = _strict(value)
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not open_ended:
        strict["additionalProperties"] = False
    return strict
