"""Which cores and which memory each rank of one machine gets: pure, from a topology.

Ranks are spread over sockets, then over the NUMA nodes of a socket, then over the cores of a node. So a rank crosses
a boundary only where there are fewer ranks than sockets or nodes, and then it takes whole ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Literal

from corebound.errors import ConfigError
from corebound.launcher.corelist import render_core_list
from corebound.topology import Core, Topology

MemoryPolicy = Literal["bind", "preferred", "interleave", "default"]


@dataclass(frozen=True)
class Binding:
    """Where one rank runs. `memory_policy` default means first touch, the kernel's own."""

    cpus: tuple[int, ...]
    memory_nodes: tuple[int, ...]
    memory_policy: MemoryPolicy
    num_threads: int


@dataclass(frozen=True)
class Arrangement:
    """The bindings of all places of a machine, whether they are to be enforced, and what the user should know."""

    bindings: tuple[Binding, ...]
    bound: bool
    warnings: tuple[str, ...] = ()


def arrange(
    topology: Topology, num_ranks: int, *, bind_cores: bool | None, core_list: Sequence[int] | None = None
) -> Arrangement:
    """Return bindings for `num_ranks` ranks, or shared cores where binding is off or, for None, impossible.

    Raises: ConfigError when binding is asked for and does not fit.
    """
    num_cores = len(topology.physical_cores())
    if bind_cores or (bind_cores is None and num_ranks <= num_cores):
        bindings = bind(topology, num_ranks, core_list)
        return Arrangement(bindings, True, _binding_warnings(topology, bindings, core_list))
    shared = Binding(
        cpus=topology.allowed_cpus,
        memory_nodes=_memory_nodes(topology, {core.node for core in topology.physical_cores()}),
        memory_policy="default",
        num_threads=max(1, num_cores // num_ranks),
    )
    crowded = f"ranks share cores: {num_ranks} ranks on {num_cores} physical cores run slowly"
    return Arrangement((shared,) * num_ranks, False, (crowded,) if num_ranks > num_cores else ())


def omp_num_threads(binding: Binding, bound: bool, environ: Mapping[str, str]) -> str:
    """Return OMP_NUM_THREADS for a rank: a thread for each core; the user's own value counts where nothing is bound."""
    return str(binding.num_threads) if bound else environ.get("OMP_NUM_THREADS") or str(binding.num_threads)


def bind(topology: Topology, num_ranks: int, core_list: Sequence[int] | None = None) -> tuple[Binding, ...]:
    """Return one binding for each local rank: whole physical cores, disjoint, within a NUMA node where possible.

    Without a core list a rank gets the first allowed CPU of each of its cores, so SMT siblings stay empty. A core list
    is taken as it is: exactly its CPUs are used and each gets a thread.

    Raises: ConfigError when there are more ranks than cores, or the list names a CPU that is not allowed.
    """
    cores = _first_siblings(topology) if core_list is None else _listed_cores(topology, core_list)
    if num_ranks < 1:
        raise ConfigError(f"cannot bind {num_ranks} ranks: expected at least 1")
    if num_ranks > len(cores):
        raise ConfigError(
            f"cannot bind {num_ranks} ranks to {len(cores)} physical cores "
            f"(CPUs {render_core_list(cpu for core in cores for cpu in core.cpus)}): each rank needs a core of its own",
            hint=f"use {_counts(len(cores))}, or leave out --bind_cores_to_rank to let ranks share cores",
        )
    sockets = _grouped(cores, lambda core: core.socket)
    tree = [_grouped(socket, lambda core: core.node) for socket in sockets]
    return tuple(_binding(topology, share) for share in _divide_sockets(tree, num_ranks))


def _counts(most: int) -> str:
    return "1 rank" if most == 1 else "1 or 2 ranks" if most == 2 else f"1 to {most} ranks"


def _first_siblings(topology: Topology) -> list[Core]:
    return [Core(core.cpus[:1], core.socket, core.node) for core in topology.physical_cores()]


def _listed_cores(topology: Topology, core_list: Sequence[int]) -> list[Core]:
    foreign = sorted(set(core_list).difference(topology.allowed_cpus))
    if foreign:
        raise ConfigError(
            f"--bind_core_list: CPUs {render_core_list(foreign)} are not available to this process "
            f"(available: {render_core_list(topology.allowed_cpus)})",
            hint="`corebound topology` shows the CPUs, their cores and nodes",
        )
    listed = [
        Core(tuple(cpu for cpu in core.cpus if cpu in set(core_list)), core.socket, core.node)
        for core in topology.physical_cores()
    ]
    return [core for core in listed if core.cpus]


def _grouped(cores: Iterable[Core], key: Callable[[Core], int]) -> list[list[Core]]:
    return [list(group) for _, group in groupby(sorted(cores, key=key), key=key)]


def _divide_sockets(sockets: list[list[list[Core]]], num_ranks: int) -> list[list[Core]]:
    sizes = [sum(len(node) for node in nodes) for nodes in sockets]
    if num_ranks < len(sockets):
        return [
            [core for nodes in sockets[start:stop] for node in nodes for core in node]
            for start, stop in _contiguous(tuple(sizes), num_ranks)
        ]
    return [
        share
        for nodes, count in zip(sockets, _apportion(sizes, num_ranks), strict=True)
        for share in _divide_nodes(nodes, count)
    ]


def _divide_nodes(nodes: list[list[Core]], num_ranks: int) -> list[list[Core]]:
    if num_ranks == 0:
        return []
    sizes = [len(node) for node in nodes]
    if num_ranks < len(nodes):
        parts = _contiguous(tuple(sizes), num_ranks)
        return [[core for node in nodes[start:stop] for core in node] for start, stop in parts]
    return [
        share
        for node, count in zip(nodes, _apportion(sizes, num_ranks), strict=True)
        for share in _divide_cores(node, count)
    ]


def _divide_cores(cores: list[Core], num_ranks: int) -> list[list[Core]]:
    ordered = sorted(cores, key=lambda core: core.cpus)
    each, extra = divmod(len(ordered), num_ranks) if num_ranks else (0, 0)
    starts = [rank * each + min(rank, extra) for rank in range(num_ranks + 1)]
    return [ordered[starts[rank] : starts[rank + 1]] for rank in range(num_ranks)]


def _apportion(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """Return how many ranks each group takes so that the smallest share, which sets the pace, is as large as it can be.

    Every group takes part, unless leaving the small ones out more than doubles the smallest share: a container may
    own 60 cores of one socket and one of the other.
    """
    everywhere = _fill(sizes, [1] * len(sizes), num_ranks - len(sizes))
    fewer = _fill(sizes, [0] * len(sizes), num_ranks)
    return fewer if _smallest(sizes, fewer) > 2 * _smallest(sizes, everywhere) else everywhere


def _fill(sizes: Sequence[int], counts: list[int], num_ranks: int) -> list[int]:
    for _ in range(num_ranks):
        best = max(range(len(sizes)), key=lambda group: (sizes[group] / (counts[group] + 1), -group))
        counts[best] += 1
    return counts


def _smallest(sizes: Sequence[int], counts: Sequence[int]) -> int:
    return min(size // count for size, count in zip(sizes, counts, strict=True) if count)


def _contiguous(sizes: tuple[int, ...], num_parts: int) -> list[tuple[int, int]]:
    """Return the (start, stop) of `num_parts` runs of neighbouring groups, the smallest run as large as it can be."""

    @cache
    def best(start: int, parts: int) -> tuple[int, int, tuple[int, ...]]:
        if parts == 1:
            total = sum(sizes[start:])
            return total, -total, (len(sizes),)
        options = []
        for stop in range(start + 1, len(sizes) - parts + 2):
            size = sum(sizes[start:stop])
            smallest, largest, stops = best(stop, parts - 1)
            options.append((min(size, smallest), min(-size, largest), (stop, *stops)))
        return max(options)

    stops = best(0, num_parts)[2]
    return list(zip((0, *stops), stops, strict=False))


def _binding(topology: Topology, cores: Sequence[Core]) -> Binding:
    cpus = tuple(sorted(cpu for core in cores for cpu in core.cpus))
    nodes = sorted({core.node for core in cores})
    memory_nodes, policy = _memory(topology, nodes)
    return Binding(cpus, memory_nodes, policy, num_threads=len(cpus))


def _memory(topology: Topology, nodes: Sequence[int]) -> tuple[tuple[int, ...], MemoryPolicy]:
    hbm = [node for node in (topology.hbm_node_of(node) for node in nodes) if node is not None]
    if len(hbm) == len(nodes):
        # Preferred, not bind: HBM is small, and what does not fit must spill to the node's DDR.
        return tuple(sorted(hbm)), "preferred" if len(hbm) == 1 else "interleave"
    local = _memory_nodes(topology, nodes)
    if not local:
        return (), "default"
    if len(nodes) > 1 and len(local) > 1:
        return local, "interleave"
    # The nearest node stands in for one without memory, but its own ranks need it more.
    return local, "bind" if set(local).intersection(nodes) else "preferred"


def _memory_nodes(topology: Topology, nodes: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({memory for node in nodes for memory in topology.memory_nodes_of(node)}))


def _binding_warnings(
    topology: Topology, bindings: Sequence[Binding], core_list: Sequence[int] | None
) -> tuple[str, ...]:
    warnings = []
    nodes_of = {cpu: core.node for core in topology.physical_cores() for cpu in core.cpus}
    spans = []
    for local_rank, binding in enumerate(bindings):
        nodes = sorted({nodes_of[cpu] for cpu in binding.cpus})
        if len(nodes) > 1:
            memory = f"{binding.memory_policy} {render_core_list(binding.memory_nodes)}"
            spans.append(f"local rank {local_rank} has nodes {render_core_list(nodes)} (memory: {memory.strip()})")
    if spans:
        num_nodes = len(set(nodes_of.values()))
        warnings.append(f"fewer ranks than the {num_nodes} NUMA nodes: {', '.join(spans)}")
    used = {cpu for binding in bindings for cpu in binding.cpus}
    idle = [core for core in topology.physical_cores() if not used.intersection(core.cpus)]
    if idle and core_list is None:
        cpus = render_core_list(core.cpus[0] for core in idle)
        warnings.append(f"cores of CPUs {cpus} stay idle: a rank of their own would slow down all others")
    quota = topology.cgroup.cpu_quota
    num_threads = sum(binding.num_threads for binding in bindings)
    if quota is not None and quota < num_threads:
        warnings.append(
            f"the cgroup allows {quota:g} CPUs of time, ranks have {num_threads} threads: they will be throttled"
        )
    return tuple(warnings)
