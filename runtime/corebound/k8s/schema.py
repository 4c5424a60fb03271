"""Schemas applied to documents, and their complaints in words: which field, what was expected, what was found."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from corebound.config.suggest import nearest
from corebound.errors import ConfigError
from corebound.k8s.extra import load
from corebound.k8s.findings import Finding, error, join, words
from corebound.k8s.quantity import not_a_quantity

RULE = "schema"
_MAX_SHOWN = 60


def check(schema: Mapping[str, Any], data: object, path: str = "", registry: Any = None) -> Iterator[Finding]:
    """Yield what a JSON schema does not allow in `data`, whose own path is `path`."""
    validators = load("jsonschema.validators", "jsonschema")
    options = {} if registry is None else {"registry": registry}
    for problem in validators.Draft202012Validator(schema, **options).iter_errors(data):
        yield from _explained(problem, path)


def _explained(problem: Any, path: str) -> Iterator[Finding]:
    at = join(path, *problem.absolute_path)
    kind, wanted, found = problem.validator, problem.validator_value, problem.instance
    if kind == "additionalProperties":
        known = problem.schema.get("properties", {})
        for name in sorted(set(found) - set(known), key=str):
            close = nearest(str(name), known)
            hint = f"; did you mean `{close}`?" if close else ""
            yield error(join(at, str(name)), f"unknown field{hint}", RULE)
    elif kind == "required":
        for name in wanted:
            if name not in found:
                yield error(join(at, name), "expected, not found", RULE)
    elif kind == "type":
        kinds = [name for name in ([wanted] if isinstance(wanted, str) else wanted) if name != "null"]
        yield error(at, f"expected {' or '.join(kinds)}, found {_shown(found)}", RULE)
    elif kind == "enum":
        yield error(
            at, f"expected {words(value for value in wanted if value is not None)}, found {_shown(found)}", RULE
        )
    elif kind in ("pattern", "oneOf", "anyOf") and not isinstance(found, dict | list):
        is_quantity = kind != "pattern" or "KMGTPE" in wanted
        yield error(at, not_a_quantity(found) if is_quantity else f"expected {wanted}, found {_shown(found)}", RULE)
    else:
        yield error(at, problem.message[:200], RULE)


def _shown(value: object) -> str:
    text = f"{value!r} ({type(value).__name__})" if isinstance(value, str | int | float | bool) else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


class KubernetesSchemas:
    """The strict schemas of one release of Kubernetes, from the package kubernetes-validate."""

    def __init__(self, version: str = "") -> None:
        """Find the newest schemas, or those of a release such as 1.31. Raises: ConfigError when there are none."""
        utils = load("kubernetes_validate.utils", "kubernetes-validate")
        versions: list[str] = utils.all_versions()
        fitting = [known for known in versions if not version or known.rpartition(".")[0] == version.lstrip("v")]
        if not fitting:
            releases = words(dict.fromkeys(known.rpartition(".")[0] for known in versions))
            raise ConfigError(f"no schemas of Kubernetes {version}", hint=f"there are: {releases}")
        self.version = fitting[-1].rpartition(".")[0]
        self._folder = f"kubernetes-json-schema/v{fitting[-1]}-local-strict"
        self._utils = utils

    def check(self, data: Mapping[str, Any], path: str = "") -> Iterator[Finding]:
        """Yield what the schema of the object's kind does not allow; a kind that has none is a finding of its own."""
        kind, api_version = str(data.get("kind", "")), str(data.get("apiVersion", ""))
        group, _, version = api_version.rpartition("/")
        prefix = f"{group.partition('.')[0]}-" if group else ""
        try:
            schema = self._utils.schema_contents(f"{self._folder}/{kind.lower()}-{prefix}{version}.json", self.version)
        except FileNotFoundError:
            yield error(
                join(path, "kind"), f"Kubernetes {self.version} has no {kind or 'kind'} in {api_version or '?'}", RULE
            )
            return
        yield from check(schema, data, path, self._registry)

    @functools.cached_property
    def _registry(self) -> Any:
        referencing = load("referencing", "referencing")
        contents = self._utils.schema_contents(f"{self._folder}/_definitions.json", self.version)
        return referencing.Resource.from_contents(contents) @ referencing.Registry()
