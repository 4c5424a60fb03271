"""What a manifest is made from: typed values, read from a YAML file and checked where they come in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from corebound.config.suggest import require_choice
from corebound.errors import ConfigError
from corebound.k8s.findings import mapping
from corebound.k8s.mapping import from_mapping
from corebound.k8s.quantity import MIB, mebibytes, num_bytes, parse_quantity

SOURCES = ("image", "claim", "host_path", "archive")
IMPLEMENTATIONS = ("Intel", "OpenMPI", "MPICH")
CONTROLLERS = ("StatefulSet", "LeaderWorkerSet")
CLEAN_PODS = ("None", "Running", "All")
MODEL_MOUNT = "/models"
# A name that a DNS label may begin with; the operator makes `<name>-worker-<index>` of it, which must be one too.
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_LABEL = 63
# What collectives of one pod keep in /dev/shm: a segment of 6 MiB for each rank and group, and what `corebound doctor`
# asks for at least.
SHM_BASE_BYTES = 256 * MIB
SHM_RANK_BYTES = 16 * MIB
_IMAGE = re.compile(r"[a-z0-9][a-zA-Z0-9._:/-]*(@sha256:[0-9a-f]{64})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model, and where a pod gets it from: in the image, or a folder mounted at /models.

    `claim`, `host_path`, `url` and `sha256` belong to the sources claim, host_path and archive (a tar file).
    """

    path: str = "demo"
    source: str = "image"
    claim: str = ""
    host_path: str = ""
    url: str = ""
    sha256: str = ""
    archive_space: str = "8Gi"


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The pods that compute. CPUs are whole, because only those are pinned; `shm` empty is computed from the ranks."""

    replicas: int = 2
    ranks: int = 1
    cpus: int = 1
    memory: str = "2Gi"
    shm: str = ""

    @property
    def shm_size(self) -> str:
        """Size of /dev/shm of each pod, as a quantity."""
        return self.shm or mebibytes(planned_shm_bytes(self.ranks))


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """The pod that starts the ranks and prints their text."""

    cpu: str = "500m"
    memory: str = "1Gi"
    mpi: str = "Intel"
    interface: str = "eth0"
    wait_for_workers_s: int = 120


@dataclass(frozen=True, kw_only=True)
class Job:
    """How long a job may take, how often it is tried, and what stays of it."""

    deadline_s: int = 3600
    retries: int = 2
    keep_s: int = 86400
    clean_pods: str = "Running"


@dataclass(frozen=True, kw_only=True)
class Values:
    """All that a manifest depends on."""

    name: str
    image: str
    kind: str = "job"
    namespace: str = ""
    version: str = ""
    prompts: tuple[str, ...] = ("The old ship",)
    max_new_tokens: int = 32
    tmp_space: str = "1Gi"
    model: Model = field(default_factory=Model)
    workers: Workers = field(default_factory=Workers)
    launcher: Launcher = field(default_factory=Launcher)
    job: Job = field(default_factory=Job)


def planned_shm_bytes(num_ranks: int) -> int:
    """Return how large /dev/shm must be for the ranks of one pod."""
    return SHM_BASE_BYTES + num_ranks * SHM_RANK_BYTES


@dataclass(frozen=True, kw_only=True)
class ServerValues:
    """All that a server's manifest depends on: pods that hold one model together, the first of which answers HTTP."""

    name: str
    image: str
    kind: str = "server"
    controller: str = "StatefulSet"
    namespace: str = ""
    version: str = ""
    port: int = 8000
    drain_s: int = 30
    wait_for_pods_s: int = 300
    key_secret: str = "corebound-server-ssh"  # noqa: S105  a name
    tmp_space: str = "1Gi"
    model: Model = field(default_factory=Model)
    pods: Workers = field(default_factory=Workers)


_KINDS: dict[str, type[Values | ServerValues]] = {"job": Values, "server": ServerValues}


def read_values(path: Path) -> Values | ServerValues:
    """Return the values of a YAML file: of a server where its `kind` is server, else of a job.

    Raises: ConfigError for a file that cannot be read, an unknown key (naming the nearest), a wrong type, or values
    that contradict each other.
    """
    # Here, because reading YAML takes a package that the classes above do without.
    from corebound.k8s.documents import read_documents

    documents = read_documents(path)
    if len(documents) != 1:
        raise ConfigError(f"{path}: expected one YAML document, found {len(documents)}")
    data = documents[0].data
    kind = require_choice("kind", str(mapping(data).get("kind", "job")), tuple(_KINDS), where=str(path))
    values = from_mapping(_KINDS[kind], data, str(path))
    check_values(values, str(path))
    return values


def check_values(values: Values | ServerValues, where: str) -> None:
    """Raise ConfigError, naming the field, for values that no cluster could use."""
    if isinstance(values, ServerValues):
        _check_server(values, where)
        return
    _check_name(values, f"-worker-{values.workers.replicas - 1}", where)
    if not values.prompts:
        raise ConfigError(f"{where}: prompts: expected at least one")
    require_choice("MPI implementation", values.launcher.mpi, IMPLEMENTATIONS, where=f"{where}: launcher.mpi")
    require_choice("policy", values.job.clean_pods, CLEAN_PODS, where=f"{where}: job.clean_pods")
    _check_model(values.model, where)
    _check_sizes(values, where)


def _check_server(values: ServerValues, where: str) -> None:
    # Pods carry a label of the set's name and a hash of ten characters; the inner set of a LeaderWorkerSet is NAME-0.
    _check_name(values, "-0123456789" if values.controller == "StatefulSet" else "-0-0123456789", where)
    require_choice("controller", values.controller, CONTROLLERS, where=f"{where}: controller")
    _check_model(values.model, where)
    if not 1024 <= values.port <= 65535:
        raise ConfigError(f"{where}: port: expected 1024 to 65535, found {values.port}")
    for name, number in {"drain_s": values.drain_s, "wait_for_pods_s": values.wait_for_pods_s}.items():
        if number < 1:
            raise ConfigError(f"{where}: {name}: expected 1 or more, found {number}")
    _check_pods(values.pods, "pods", where)
    for name, text in {"tmp_space": values.tmp_space, "model.archive_space": values.model.archive_space}.items():
        num_bytes(text, f"{where}: {name}")


def _check_name(values: Values | ServerValues, longest_end: str, where: str) -> None:
    longest = MAX_LABEL - len(longest_end)
    if DNS_LABEL.fullmatch(values.name) is None or len(values.name) > longest:
        raise ConfigError(
            f"{where}: name: expected at most {longest} of a-z, 0-9 and -, a letter first, found {values.name!r}"
        )
    if _IMAGE.fullmatch(values.image) is None:
        raise ConfigError(f"{where}: image: expected NAME:TAG or NAME@sha256:64 hex digits, found {values.image!r}")


def _check_pods(pods: Workers, key: str, where: str) -> None:
    for name in ("replicas", "ranks", "cpus"):
        if getattr(pods, name) < 1:
            raise ConfigError(f"{where}: {key}.{name}: expected 1 or more, found {getattr(pods, name)}")
    if pods.ranks > pods.cpus:
        raise ConfigError(f"{where}: {key}.ranks: {pods.ranks} ranks need a CPU each, found {key}.cpus: {pods.cpus}")
    if num_bytes(pods.memory, f"{where}: {key}.memory") <= num_bytes(pods.shm_size, f"{where}: {key}.shm"):
        raise ConfigError(
            f"{where}: {key}.memory: {pods.memory} does not even hold /dev/shm ({pods.shm_size}), which counts"
        )


def _check_model(model: Model, where: str) -> None:
    require_choice("source", model.source, SOURCES, where=f"{where}: model.source")
    needed = {"claim": ("claim",), "host_path": ("host_path",), "archive": ("url", "sha256")}.get(model.source, ())
    for name in ("claim", "host_path", "url", "sha256"):
        given = bool(getattr(model, name))
        if given != (name in needed):
            verb = "expected, because" if name in needed else "has no effect while"
            raise ConfigError(f"{where}: model.{name}: {verb} model.source is {model.source}")
    if model.source == "image" and model.path.startswith(f"{MODEL_MOUNT}/"):
        raise ConfigError(f"{where}: model.path: {model.path} is mounted only when model.source is not image")
    if model.sha256 and _SHA256.fullmatch(model.sha256) is None:
        raise ConfigError(f"{where}: model.sha256: expected 64 hex digits, found {model.sha256!r}")


def _check_sizes(values: Values, where: str) -> None:
    counts = {
        "max_new_tokens": values.max_new_tokens,
        "launcher.wait_for_workers_s": values.launcher.wait_for_workers_s,
        "job.deadline_s": values.job.deadline_s,
    }
    for name, number in counts.items():
        if number < 1:
            raise ConfigError(f"{where}: {name}: expected 1 or more, found {number}")
    for name, number in {"job.retries": values.job.retries, "job.keep_s": values.job.keep_s}.items():
        if number < 0:
            raise ConfigError(f"{where}: {name}: expected 0 or more, found {number}")
    if (parse_quantity(values.launcher.cpu) or 0) <= 0:
        raise ConfigError(f"{where}: launcher.cpu: expected a quantity such as 500m, found {values.launcher.cpu!r}")
    for name, text in {
        "launcher.memory": values.launcher.memory,
        "tmp_space": values.tmp_space,
        "model.archive_space": values.model.archive_space,
    }.items():
        num_bytes(text, f"{where}: {name}")
    _check_pods(values.workers, "workers", where)
