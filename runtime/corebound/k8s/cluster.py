"""A Kubernetes cluster as few questions and orders, each with an error that says what to do next."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from corebound.errors import ConfigError, CoreboundError, HostError
from corebound.k8s.extra import load

FIELD_MANAGER = "corebound"
REQUEST_TIMEOUT_S = 30
# The client keeps what it discovered in a file of a known name in /tmp, where others could put their own. In memory is
# enough for one command; a path that cannot exist keeps it there.
_NO_CACHE_FILE = "/dev/null/corebound"
_NAMESPACE_OF_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Reference:
    """Which object is meant."""

    api_version: str
    kind: str
    name: str
    namespace: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class Cluster(Protocol):
    """What this package asks of a cluster. Tests answer by themselves."""

    @property
    def namespace(self) -> str:
        """Namespace of objects that name none."""

    def knows(self, api_version: str, kind: str) -> bool:
        """Return whether the cluster has this kind, asked anew each time."""

    def read(self, reference: Reference) -> dict[str, Any] | None:
        """Return an object, None when it is not there."""

    def apply(self, reference: Reference, data: Mapping[str, Any], *, force: bool) -> dict[str, Any]:
        """Send what an object should be and return what it became."""

    def delete(self, reference: Reference) -> bool:
        """Remove an object and what belongs to it; return whether it was there."""

    def find(self, kind: str, namespace: str, *, labels: str = "", fields: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind of v1."""

    def log(self, namespace: str, pod: str, container: str, *, follow: bool, since_s: int | None) -> Iterator[str]:
        """Yield the lines that a container wrote; with `follow` also those to come, each after its time and a space."""


class KubernetesCluster:
    """The cluster of a context of kubectl's configuration, or the one that this pod runs in.

    Raises (every method): HostError when the cluster does not answer; ConfigError or HostError for what it refuses,
        with its own words.
    """

    def __init__(self, api_client: Any, namespace: str) -> None:
        dynamic = load("kubernetes.dynamic", "kubernetes")
        self._client = load("kubernetes.client", "kubernetes")
        self._not_found = load("kubernetes.dynamic.exceptions", "kubernetes").ResourceNotFoundError
        self._api_client = api_client
        self.namespace = namespace
        with self._explained("the cluster's list of kinds"):
            self._dynamic = dynamic.DynamicClient(api_client, cache_file=_NO_CACHE_FILE)

    def knows(self, api_version: str, kind: str) -> bool:
        """Return whether the cluster has this kind; a definition counts only once it is established."""
        with self._explained(f"whether there are {kind} objects"):
            try:
                self._dynamic.resources.get(api_version=api_version, kind=kind)
            except self._not_found:
                return False
            return True

    def read(self, reference: Reference) -> dict[str, Any] | None:
        """Return an object, None when it is not there."""
        with self._explained(str(reference)):
            return self._or_none(self._resource(reference).get, reference)

    def apply(self, reference: Reference, data: Mapping[str, Any], *, force: bool) -> dict[str, Any]:
        """Send what an object should be (server-side apply) and return what it became."""
        with self._explained(str(reference)):
            applied = self._resource(reference).server_side_apply(
                body=dict(data),
                name=reference.name,
                namespace=reference.namespace,
                field_manager=FIELD_MANAGER,
                force_conflicts=True if force else None,
                query_params=[("fieldValidation", "Strict")],
                _request_timeout=REQUEST_TIMEOUT_S,
            )
        return dict(applied.to_dict())

    def delete(self, reference: Reference) -> bool:
        """Remove an object after all that belongs to it; return whether it was there."""
        with self._explained(str(reference)):
            deleted = self._or_none(self._resource(reference).delete, reference, propagation_policy="Foreground")
        return deleted is not None

    def find(self, kind: str, namespace: str, *, labels: str = "", fields: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind of v1."""
        with self._explained(f"{kind} objects in {namespace}"):
            found = self._dynamic.resources.get(api_version="v1", kind=kind).get(
                namespace=namespace,
                label_selector=labels or None,
                field_selector=fields or None,
                _request_timeout=REQUEST_TIMEOUT_S,
            )
        return list(found.to_dict()["items"])

    def log(self, namespace: str, pod: str, container: str, *, follow: bool, since_s: int | None) -> Iterator[str]:
        """Yield the lines that a container wrote; with `follow` also those to come, each after its time and a space."""
        options: dict[str, Any] = {"container": container, "follow": follow}
        if since_s is not None:
            options["since_seconds"] = since_s
        with self._explained(f"log of {namespace}/{pod}"):
            core = self._client.CoreV1Api(self._api_client)
            if follow:
                stream = load("kubernetes.watch", "kubernetes").Watch().stream
                yield from stream(core.read_namespaced_pod_log, pod, namespace, timestamps=True, **options)
                return
            response = core.read_namespaced_pod_log(
                pod, namespace, **options, _preload_content=False, _request_timeout=REQUEST_TIMEOUT_S
            )
            yield from response.data.decode("utf-8", "replace").splitlines()

    def _resource(self, reference: Reference) -> Any:
        try:
            return self._dynamic.resources.get(api_version=reference.api_version, kind=reference.kind)
        except self._not_found:
            raise HostError(f"{reference}: the cluster has no {reference.kind} of {reference.api_version}") from None

    def _or_none(self, call: Any, reference: Reference, **options: Any) -> dict[str, Any] | None:
        try:
            answer = call(
                name=reference.name, namespace=reference.namespace, _request_timeout=REQUEST_TIMEOUT_S, **options
            )
        except self._client.ApiException as error:
            if error.status == 404:
                return None
            raise
        return dict(answer.to_dict())

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        urllib3 = load("urllib3.exceptions", "kubernetes")
        try:
            yield
        except self._client.ApiException as error:
            raise _refused(what, error) from error
        except (urllib3.HTTPError, OSError) as error:
            raise HostError(
                f"{what}: no answer from {self._api_client.configuration.host}: {error}",
                hint="is it the cluster that you mean? `kubectl config current-context`, or --context",
            ) from error


def _refused(what: str, error: Any) -> CoreboundError:
    """Return the error for what an API server refused, in its own words."""
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = str(error.reason)
    if error.status == 409:
        hint = "another tool owns these fields: --force-conflicts takes them over"
        return ConfigError(f"{what}: {message}", hint=hint)
    if error.status in (400, 422):
        return ConfigError(f"{what}: the cluster refuses it: {message}")
    hints = {
        401: "the credentials of this context are not accepted, or have expired",
        403: "k8s/submitter.yaml is a role with the rights that these commands need",
        404: "the namespace, or the node of a pod, is not there",
    }
    return HostError(f"{what}: the cluster answers {error.status}: {message}", hint=hints.get(error.status))


def connect(context: str | None = None, namespace: str | None = None) -> KubernetesCluster:
    """Return the cluster of kubectl's current context, of a context that is named, or the one that this pod runs in.

    Raises: ConfigError when there is neither; HostError when it does not answer.
    """
    config = load("kubernetes.config", "kubernetes")
    try:
        api_client = config.new_client_from_config(context=context)
        _, active = config.list_kube_config_contexts()
        chosen = next((entry for entry in config.list_kube_config_contexts()[0] if entry["name"] == context), active)
        default = str(chosen["context"].get("namespace") or "")
    except config.ConfigException as error:
        if context is not None or not _NAMESPACE_OF_POD.exists():
            raise ConfigError(
                f"no cluster to talk to: {error}", hint="set KUBECONFIG, or make ~/.kube/config as for kubectl"
            ) from error
        config.load_incluster_config()
        api_client = load("kubernetes.client", "kubernetes").ApiClient()
        default = _NAMESPACE_OF_POD.read_text(encoding="utf-8").strip()
    return KubernetesCluster(api_client, namespace or default or "default")
