"""Manifests checked without a cluster: YAML, schemas, and the rules that no schema holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from corebound.k8s import leader_worker_set
from corebound.k8s.definition import API_VERSION, Definition, read_definition
from corebound.k8s.documents import Document
from corebound.k8s.extra import available
from corebound.k8s.findings import Finding, error
from corebound.k8s.pods import Pod, pods_of
from corebound.k8s.rules.operator import operator_rules
from corebound.k8s.rules.plan import image_rules, plan_rules
from corebound.k8s.rules.resources import resource_rules
from corebound.k8s.rules.security import Level, security_rules
from corebound.k8s.schema import KubernetesSchemas, check

# Pods of these roles launch or wait; all others compute, on CPUs of their own.
_UNPINNED = ("Launcher",)


@dataclass
class Validator:
    """What to check against. `schemas` None leaves out what only Kubernetes' own schemas know."""

    definition: Definition
    schemas: KubernetesSchemas | None
    level: Level = "restricted"
    model_bytes: int | None = None
    notes: list[str] = field(default_factory=list)

    def findings(self, documents: Sequence[Document]) -> list[Finding]:
        """Return what is wrong with documents, in their order, errors of the schema first."""
        found = []
        for document in documents:
            label = f"{document.kind}/{document.name}" if document.kind else f"line {document.line}"
            seen = set()
            for finding in self._of(document):
                # The operator's definition and the schema of a pod may object to the same field.
                key = (finding.path, finding.rule, finding.reason if finding.rule != "schema" else "")
                if key not in seen:
                    seen.add(key)
                    found.append(replace(finding, source=document.source, document=label))
        return found

    def _of(self, document: Document) -> Iterator[Finding]:
        for path, line in document.duplicates:
            yield error(path, f"the key is there twice, again on line {line}", "yaml/duplicate-key")
        data = document.data
        if not isinstance(data, dict):
            yield error("", f"expected an object, found {type(data).__name__}", "schema")
            return
        is_job = document.kind == "MPIJob"
        if is_job:
            yield from check(self.definition.schema, data)
            if data.get("apiVersion") == API_VERSION:
                yield from operator_rules(data)
        elif document.kind == leader_worker_set.KIND:
            yield from check(leader_worker_set.SCHEMA, data)
        elif self.schemas is not None:
            yield from self.schemas.check(data)
        for pod in pods_of(data):
            # Those of Kubernetes' own kinds were checked with the whole object.
            if document.kind in ("MPIJob", leader_worker_set.KIND) and self.schemas is not None:
                yield from self._template(pod)
            yield from security_rules(pod, self.level)
            yield from resource_rules(pod, pinned=pod.role not in _UNPINNED)
            yield from image_rules(pod)
        if is_job:
            yield from plan_rules(data, self.model_bytes)

    def _template(self, pod: Pod) -> Iterator[Finding]:
        """Check a pod template of a foreign kind as the pod that becomes of it."""
        assert self.schemas is not None
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": dict(pod.metadata), "spec": dict(pod.spec)}
        yield from self.schemas.check(whole, pod.path)


def make_validator(
    definition: Path | None, level: Level = "restricted", version: str = "", model_bytes: int | None = None
) -> Validator:
    """Return a validator with what there is to check against; its notes say what is missing.

    Raises: ConfigError for a definition that is none, or a release of Kubernetes without schemas.
    """
    notes = []
    schemas = None
    if available("kubernetes_validate"):
        schemas = KubernetesSchemas(version)
    else:
        notes.append("kubernetes-validate is not installed: pods are not checked against the schemas of Kubernetes")
    if definition is None:
        notes.append(
            "no definition of MPIJob given (--definition, MPI_OPERATOR_MANIFEST): using Corebound's own compact one"
        )
    return Validator(read_definition(definition), schemas, level, model_bytes, notes)


def has_errors(findings: Sequence[Finding]) -> bool:
    """Return whether any finding makes a manifest wrong."""
    return any(finding.severity == "error" for finding in findings)


def model_of(documents: Sequence[Document]) -> str | None:
    """Return the model that a launcher of these documents is told to use, None when none is."""
    for document in documents:
        for pod in pods_of(document.data):
            if pod.role == "Launcher" and (model := pod.argument("--model")):
                return model
    return None


def weights_bytes(directory: Path) -> int | None:
    """Return the size of a model's weights, None where there are none."""
    sizes = [path.stat().st_size for path in directory.glob("*.safetensors")]
    return sum(sizes) if sizes else None
