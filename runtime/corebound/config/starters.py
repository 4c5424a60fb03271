"""Programs other than Corebound's launcher that start ranks, and what each tells a rank of its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from corebound.errors import ConfigError

DEFAULT_MASTER_PORT = "29500"


@dataclass(frozen=True)
class Starter:
    """A starter of MPI: its variables for a rank's place, and how its command names a variable for all ranks."""

    title: str
    rank: str
    world_size: str
    local_rank: str
    local_size: str
    master_addr_words: str

    @property
    def names(self) -> tuple[str, ...]:
        """All variables, every one of which the starter sets."""
        return (self.rank, self.world_size, self.local_rank, self.local_size)


HYDRA = Starter("mpiexec.hydra", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "-genv MASTER_ADDR HOST")
OPEN_MPI = Starter(
    "mpirun of Open MPI",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "-x MASTER_ADDR=HOST",
)
STARTERS = (HYDRA, OPEN_MPI)


def started_by(starter: Starter, environ: Mapping[str, str]) -> bool:
    """Return whether an environment is that of a rank which this starter started."""
    return all(name in environ for name in starter.names)


def place_variables(environ: Mapping[str, str]) -> dict[str, str] | None:
    """Return RANK, WORLD_SIZE and their kind for a rank that MPI started, None for any other process.

    Raises: ConfigError on several hosts when it is not said where ranks meet: MPI does not tell.
    """
    starter = next((one for one in STARTERS if started_by(one, environ)), None)
    if starter is None:
        return None
    place = {
        "RANK": environ[starter.rank],
        "WORLD_SIZE": environ[starter.world_size],
        "LOCAL_RANK": environ[starter.local_rank],
        "LOCAL_SIZE": environ[starter.local_size],
        "LOCAL_WORLD_SIZE": environ[starter.local_size],
    }
    if place["LOCAL_WORLD_SIZE"] != place["WORLD_SIZE"] and not environ.get("MASTER_ADDR"):
        raise ConfigError(
            f"ranks that {starter.title} started on several hosts: MASTER_ADDR is not set",
            hint=f"name the host of rank 0: mpirun {starter.master_addr_words} ..., or use `corebound run`",
        )
    return {
        **place,
        "MASTER_ADDR": environ.get("MASTER_ADDR") or "127.0.0.1",
        "MASTER_PORT": environ.get("MASTER_PORT") or DEFAULT_MASTER_PORT,
    }
