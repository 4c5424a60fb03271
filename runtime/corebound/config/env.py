"""The only reader of the process environment: typed, validated views of the variables that Corebound knows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from corebound.config.starters import HYDRA, place_variables, started_by
from corebound.config.suggest import nearest, require_choice, unknown_name
from corebound.errors import ConfigError

KERNEL_CHOICES = ("auto", "native", "reference")
HOST_LINK_CHOICES = ("auto", "tcp", "ccl", "gloo")
COMM_CHOICES = ("auto", "shm", "hierarchical", "ccl", "gloo")
LOG_LEVELS = ("debug", "info", "warning", "error")

# Every COREBOUND_ variable with its meaning. docs/configuration.md is checked against this table.
VARIABLES: dict[str, str] = {
    "COREBOUND_ACCELERATOR": "accelerator to use: cpu, or the name of an installed extension",
    "COREBOUND_AGENT_SECRET": "set by the launcher for agents that MPI or Slurm starts: proves that they belong to it",
    "COREBOUND_BIND_CORES": "1 binds each rank to cores of its own in init_distributed, 0 (the default) does not",
    "COREBOUND_COMM": f"provider of collectives: {', '.join(COMM_CHOICES)}",
    "COREBOUND_COMM_TIMEOUT_S": "seconds after which a collective gives up (default 60)",
    "COREBOUND_EXPORT": "more variables that go to ranks on other hosts: names, or prefixes and *, joined by commas",
    "COREBOUND_HOST_LINK": f"what carries hierarchical's data between hosts: {', '.join(HOST_LINK_CHOICES)}",
    "COREBOUND_ISA": "name of the instruction-set variant to force; unset takes the best one that runs here",
    "COREBOUND_JOB_ID": "set by the agent: unique name of this launch, part of every segment name",
    "COREBOUND_KERNELS": f"kernel implementation: {', '.join(KERNEL_CHOICES)}",
    "COREBOUND_LOG_LEVEL": f"least severe message shown: {', '.join(LOG_LEVELS)}",
    "COREBOUND_START_TIMEOUT_S": "seconds within which agents that MPI or Slurm starts must have come (default 60)",
}

# Kubernetes puts the first kind in every pod beside a service of ours; the second is read by its tests.
_SET_BY_OTHERS = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$|^COREBOUND_(LAB|TOPOLOGY|K8S)_"
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """User settings from the environment. `isa` None means the best variant that can run."""

    accelerator: str | None = None
    bind_cores: bool = False
    comm: str = "auto"
    comm_timeout_s: float = 60.0
    host_link: str = "auto"
    isa: str | None = None
    kernels: str = "auto"
    log_level: str = "info"
    start_timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class RankEnvironment:
    """What the agent tells a rank about its place in the launch."""

    rank: int
    local_rank: int
    world_size: int
    local_size: int
    master_addr: str
    master_port: int
    job_id: str


def settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the validated COREBOUND_ settings.

    Raises: ConfigError for a misspelt COREBOUND_ variable, or a value that is not one of the choices.
    """
    env = os.environ if environ is None else environ
    for name in env:
        # Only near misses are errors: Kubernetes puts COREBOUND_..._SERVICE_HOST in every pod beside a service of ours.
        if name.startswith("COREBOUND_") and name not in VARIABLES and nearest(name, VARIABLES, cutoff=0.85):
            raise unknown_name("environment variable", name, VARIABLES)

    def choice(name: str, valid: tuple[str, ...], default: str) -> str:
        return require_choice("value", env.get(name) or default, valid, where=name)

    return Settings(
        accelerator=env.get("COREBOUND_ACCELERATOR") or None,
        bind_cores=choice("COREBOUND_BIND_CORES", ("0", "1"), "0") == "1",
        comm=choice("COREBOUND_COMM", COMM_CHOICES, "auto"),
        comm_timeout_s=_positive_float(env, "COREBOUND_COMM_TIMEOUT_S", 60.0),
        host_link=choice("COREBOUND_HOST_LINK", HOST_LINK_CHOICES, "auto"),
        isa=env.get("COREBOUND_ISA") or None,
        kernels=choice("COREBOUND_KERNELS", KERNEL_CHOICES, "auto"),
        log_level=choice("COREBOUND_LOG_LEVEL", LOG_LEVELS, "info"),
        start_timeout_s=_positive_float(env, "COREBOUND_START_TIMEOUT_S", 60.0),
    )


def started_by_hydra(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether Intel MPI's mpiexec.hydra, or MPICH's, started this process itself: then it may use MPI."""
    env = os.environ if environ is None else environ
    return started_by(HYDRA, env)


def fabric(environ: Mapping[str, str] | None = None) -> str:
    """Return what FI_PROVIDER, a variable of libfabric, names if that is another network than TCP; empty otherwise."""
    env = os.environ if environ is None else environ
    provider = env.get("FI_PROVIDER", "")
    return "" if provider in ("tcp", "sockets", "net") else provider


def unknown_variables(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the COREBOUND_ variables that nothing reads, sorted, but for those that others have reasons to set."""
    env = os.environ if environ is None else environ
    return tuple(
        sorted(
            name
            for name in env
            if name.startswith("COREBOUND_") and name not in VARIABLES and not _SET_BY_OTHERS.search(name)
        )
    )


def rank_environment(environ: Mapping[str, str] | None = None) -> RankEnvironment | None:
    """Return this process's place in a launch, or None when it was not launched as a rank.

    Raises: ConfigError when only some of the variables are set, or one is not a number.
    """
    env = os.environ if environ is None else environ
    if "RANK" not in env and "WORLD_SIZE" not in env:
        place = place_variables(env)
        if place is None:
            return None
        env = {**env, **place}
    needed = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if not env.get(name)]
    if missing:
        raise ConfigError(
            f"incomplete rank environment: {', '.join(missing)} not set",
            hint="start the script with `corebound run`, or unset RANK and WORLD_SIZE to run alone",
        )
    return RankEnvironment(
        rank=_integer(env, "RANK"),
        local_rank=_integer(env, "LOCAL_RANK"),
        world_size=_integer(env, "WORLD_SIZE"),
        local_size=_integer(env, "LOCAL_WORLD_SIZE" if env.get("LOCAL_WORLD_SIZE") else "LOCAL_SIZE", default=1),
        master_addr=env["MASTER_ADDR"],
        master_port=_integer(env, "MASTER_PORT"),
        job_id=env.get("COREBOUND_JOB_ID") or f"port{env['MASTER_PORT']}",
    )


def publish_place() -> None:
    """Set RANK, LOCAL_RANK, WORLD_SIZE and their kind for a rank that MPI started, which scripts look for.

    They stay out of the environment of any other process. Raises: ConfigError as `rank_environment`.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        os.environ.update(place_variables(os.environ) or {})


def torch_store_attempt() -> str | None:
    """Return which start of the ranks this is where torchrun keeps a store at MASTER_PORT, None where it does not."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"


def local_place(environ: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Return this process's rank on its machine, and how many ranks share the machine (0 where nothing says so).

    A script that was started with nothing but LOCAL_RANK has a place here too.

    Raises: ConfigError when a variable is not a number, and as `rank_environment` without LOCAL_RANK.
    """
    env = os.environ if environ is None else environ
    place = None if env.get("LOCAL_RANK") else rank_environment(env)
    if place is not None:
        return place.local_rank, place.local_size
    size = "LOCAL_WORLD_SIZE" if env.get("LOCAL_WORLD_SIZE") else "LOCAL_SIZE"
    return _integer(env, "LOCAL_RANK", default=0), _integer(env, size, default=0)


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return where Corebound keeps what it can make again: below XDG_CACHE_HOME, or ~/.cache."""
    env = os.environ if environ is None else environ
    base = env.get("XDG_CACHE_HOME", "")
    # The standard says that a relative path counts as none.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "corebound"


def agent_identity(variable: str) -> tuple[str, str]:
    """Return the secret of the launch, and by the variable's value which of its agents this is; unsets the secret.

    Raises: ConfigError when one of them is not set.
    """
    secret, identity = os.environ.pop("COREBOUND_AGENT_SECRET", ""), os.environ.get(variable, "")
    for name, value in (("COREBOUND_AGENT_SECRET", secret), (variable, identity)):
        if not value:
            raise ConfigError(f"agent: {name} is not set: only a launcher can start an agent")
    return secret, identity


def ssh_server_address() -> str | None:
    """Return at which of our addresses the ssh session that we run in arrived, None outside of one."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else None


def mpi_operator_manifest() -> Path | None:
    """Return the file with the MPI operator's definition of MPIJob that the user names, None when none is named."""
    name = os.environ.get("MPI_OPERATOR_MANIFEST", "")
    return Path(name) if name else None


def notify_socket() -> str | None:
    """Return where systemd wants to hear that a service is ready, None when we are not started as one."""
    return os.environ.get("NOTIFY_SOCKET") or None


def job_id() -> str | None:
    """Return the id of the launch that this process belongs to, None outside of one."""
    return os.environ.get("COREBOUND_JOB_ID") or None


def set_default(name: str, value: str) -> None:
    """Set a variable that a library below us reads, unless the user has set it."""
    os.environ.setdefault(name, value)


def put(name: str, value: str) -> str | None:
    """Set a variable for this process and those that it starts, and return what it was."""
    before = os.environ.get(name)
    os.environ[name] = value
    return before


def unset(names: Iterable[str]) -> tuple[str, ...]:
    """Remove variables and return those that were set."""
    return tuple(name for name in names if os.environ.pop(name, None) is not None)


def is_set(name: str) -> bool:
    """Return whether a variable that a library below us reads is set."""
    return name in os.environ


def snapshot() -> dict[str, str]:
    """Return a copy of the whole environment, to start other processes with."""
    return dict(os.environ)


def _integer(env: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = env.get(name)
    if not text and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ConfigError(f"environment variable {name}: expected a whole number, found {text!r}") from None


def _positive_float(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise ConfigError(f"environment variable {name}: expected a number above 0, found {text!r}")
    return value
