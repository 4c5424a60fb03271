"""Which CPUs the threads of another process may use, said in the words of OpenMP, whose threads torch has."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

from corebound.errors import ConfigError
from corebound.topology import Core, NumaNode, Topology

PLACES, NUM_THREADS = "OMP_PLACES", "OMP_NUM_THREADS"


def visible_nodes(topology: Topology) -> tuple[NumaNode, ...]:
    """Return the NUMA nodes with CPUs that this process may use: device i is the i-th of them."""
    own = {core.node for core in topology.physical_cores()}
    return tuple(node for node in topology.cpu_nodes() if node.id in own)


def write_places(environ: MutableMapping[str, str], devices: Sequence[int], topology: Topology) -> None:
    """Let a process that starts with `environ` run on these devices only: one place with the CPUs of their nodes.

    OMP_NUM_THREADS becomes a thread for each physical core, unless it is set.

    Raises: ConfigError for a device that is not there, or none at all.
    """
    nodes = visible_nodes(topology)
    wrong = [device for device in devices if not 0 <= device < len(nodes)]
    if wrong or not devices:
        raise ConfigError(
            f"visible devices: expected some of {list(range(len(nodes)))}, found {list(devices)}",
            hint="a device of the CPU is a NUMA node that this process may use; `corebound topology` shows them",
        )
    chosen = {nodes[device].id for device in devices}
    _write(environ, [core for core in topology.physical_cores() if core.node in chosen])


def write_own_place(
    environ: MutableMapping[str, str], devices: Sequence[int], local_rank: int, num_local_ranks: int, topology: Topology
) -> None:
    """Let a process that starts with `environ` run where this rank of a launch does: here devices are local ranks.

    OMP_NUM_THREADS becomes a thread for each physical core, unless it is set.

    Raises: ConfigError for another rank, whose CPUs only the launcher knows, for one that is not there, or none at all.
    """
    if not devices or not all(0 <= device < num_local_ranks for device in devices):
        raise ConfigError(
            f"visible devices: expected some of {list(range(num_local_ranks))}, found {list(devices)}",
            hint=f"under a launch a device of the CPU is a local rank, and this process is local rank {local_rank}",
        )
    if others := sorted({*devices} - {local_rank}):
        raise ConfigError(
            f"visible devices: expected [{local_rank}], the local rank of this process, found {list(devices)}; which "
            f"CPUs {', '.join(f'local rank {other}' for other in others)} may use is not known here",
            hint="`corebound run --bind_cores_to_rank` divides the CPUs of a host among its ranks",
        )
    _write(environ, topology.physical_cores())


def _write(environ: MutableMapping[str, str], cores: Sequence[Core]) -> None:
    cpus = sorted(cpu for core in cores for cpu in core.cpus)
    environ[PLACES] = "{" + ",".join(map(str, cpus)) + "}"
    environ.setdefault(NUM_THREADS, str(len(cores)))
