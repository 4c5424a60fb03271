"""The pods that a document asks for, whatever its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from corebound.k8s.findings import items, join, mapping

_CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")


@dataclass(frozen=True)
class Container:
    """A container of a pod, and the path of its field."""

    path: str
    data: Mapping[str, Any]
    is_init: bool

    @property
    def arguments(self) -> list[str]:
        """Command and arguments together."""
        words: list[str] = []
        for key in ("command", "args"):
            listed = self.data.get(key)
            words += [str(word) for word in listed] if isinstance(listed, list) else []
        return words


@dataclass(frozen=True)
class Pod:
    """A pod template: the path of the template, its role (`Launcher` and `Worker` in an MPIJob) and what it says."""

    path: str
    role: str
    metadata: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def spec_path(self) -> str:
        """Path of the pod's spec."""
        return join(self.path, "spec") if self.path else "spec"

    @property
    def containers(self) -> list[Container]:
        """All containers, init containers first."""
        return [
            Container(join(self.spec_path, key, index), data, key == "initContainers")
            for key in _CONTAINER_LISTS
            for index, data in items(self.spec, key)
        ]

    def argument(self, flag: str) -> str | None:
        """Return what a flag of any container is given as, None when it is not there."""
        for container in self.containers:
            words = container.arguments
            for index, word in enumerate(words):
                name, equals, value = word.partition("=")
                if name.replace("-", "_") != flag.replace("-", "_"):
                    continue
                return value if equals else next(iter(words[index + 1 :]), "")
        return None


def pods_of(data: object) -> Iterator[Pod]:
    """Yield the pod templates of a document."""
    spec = mapping(data, "spec")
    if mapping(data).get("kind") == "Pod":
        yield Pod("", "Pod", mapping(data, "metadata"), spec)
    for role in mapping(spec, "mpiReplicaSpecs"):
        yield from _template(spec, ("mpiReplicaSpecs", role, "template"), role)
    for keys in (("template",), ("jobTemplate", "spec", "template")):
        yield from _template(spec, keys, str(mapping(data).get("kind", "")))
    for role in ("leaderTemplate", "workerTemplate"):
        yield from _template(spec, ("leaderWorkerTemplate", role), role.removesuffix("Template"))


def _template(spec: Mapping[str, Any], keys: tuple[str, ...], role: str) -> Iterator[Pod]:
    template = mapping(spec, *keys)
    if template:
        yield Pod(join("spec", *keys), role, mapping(template, "metadata"), mapping(template, "spec"))
