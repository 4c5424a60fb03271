"""What a machine looks like to one process: CPUs, NUMA nodes, caches, memory and limits, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from corebound.topology.isa import IsaReport

# dram: a node with CPUs and memory. hbm: memory only, faster than the CPUs' own. far: memory only, not known to be
# faster (CXL, persistent memory). cpu-only: CPUs without memory of their own.
NodeKind = Literal["dram", "hbm", "far", "cpu-only"]


@dataclass(frozen=True)
class Cpu:
    """One logical CPU. An offline one has core_id, socket and node -1 and no siblings.

    `siblings` are the CPUs of its core, itself included. `core_id` is the kernel's number, unique only within a socket.
    """

    id: int
    core_id: int
    socket: int
    node: int
    siblings: tuple[int, ...]
    online: bool = True


@dataclass(frozen=True)
class Core:
    """One physical core: those of its CPUs that this process may use, lowest first."""

    cpus: tuple[int, ...]
    socket: int
    node: int


@dataclass(frozen=True)
class NumaNode:
    """One NUMA node; `distances` maps every node id to the kernel's relative distance (10 is local).

    `memory_side_cache_bytes` is not 0 where HBM caches the node's memory (HBM cache mode).
    """

    id: int
    cpus: tuple[int, ...]
    memory_bytes: int
    kind: NodeKind = "dram"
    distances: Mapping[int, int] = field(default_factory=dict)
    free_bytes: int = 0
    memory_side_cache_bytes: int = 0
    allowed: bool = True


@dataclass(frozen=True)
class Cache:
    """One cache and the CPUs that share it."""

    level: int
    kind: Literal["data", "instruction", "unified"]
    size_bytes: int
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class HugePages:
    """The pool of one size of explicit huge pages."""

    page_bytes: int
    num_total: int
    num_free: int


@dataclass(frozen=True)
class Memory:
    """Memory of the machine and what this process can still take of it.

    `limit_bytes` is the tightest limit on the cgroup path, None without one; `available_bytes` respects it.
    `shm_*` describe /dev/shm; None when it is not mounted or its state is not known.
    """

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None = None
    shm_total_bytes: int | None = None
    shm_free_bytes: int | None = None
    huge_pages: tuple[HugePages, ...] = ()
    transparent_huge_pages: str | None = None


@dataclass(frozen=True)
class CgroupLimits:
    """What the process's cgroups allow; None where nothing is limited or known.

    `version` is `v1`, `v2`, `hybrid` or `none`. `cpu_quota` is the bandwidth limit in CPUs, such as 1.5.
    """

    version: Literal["v1", "v2", "hybrid", "none"] = "none"
    cpus: tuple[int, ...] | None = None
    memory_nodes: tuple[int, ...] | None = None
    memory_limit_bytes: int | None = None
    memory_available_bytes: int | None = None
    cpu_quota: float | None = None


@dataclass(frozen=True)
class Topology:
    """A machine as one process sees it; `allowed_cpus` is what that process may run on.

    Where the kernel shows no NUMA nodes, `has_numa` is False and `nodes` is a single stand-in for the whole machine.
    """

    allowed_cpus: tuple[int, ...]
    cpus: tuple[Cpu, ...]
    nodes: tuple[NumaNode, ...]
    sockets: tuple[int, ...]
    caches: tuple[Cache, ...]
    isa: IsaReport
    memory: Memory
    warnings: tuple[str, ...] = ()
    cgroup: CgroupLimits = field(default_factory=CgroupLimits)
    has_numa: bool = True

    @property
    def online_cpus(self) -> tuple[int, ...]:
        """The CPUs of the machine that are switched on, allowed or not."""
        return tuple(cpu.id for cpu in self.cpus if cpu.online)

    @property
    def threads_per_core(self) -> int:
        """The most CPUs that any core has online: 1 without SMT."""
        return max((len(cpu.siblings) for cpu in self.cpus if cpu.online), default=1)

    def cpu(self, cpu_id: int) -> Cpu:
        """Return the CPU with this id. Raises: KeyError."""
        for cpu in self.cpus:
            if cpu.id == cpu_id:
                return cpu
        raise KeyError(f"no CPU {cpu_id}")

    def node(self, node_id: int) -> NumaNode:
        """Return the NUMA node with this id. Raises: KeyError."""
        for node in self.nodes:
            if node.id == node_id:
                return node
        raise KeyError(f"no NUMA node {node_id}")

    def physical_cores(self) -> tuple[Core, ...]:
        """Return the cores with at least one allowed CPU, by socket, node and lowest CPU."""
        by_id = {cpu.id: cpu for cpu in self.cpus}
        allowed = set(self.allowed_cpus)
        cores = []
        seen: set[int] = set()
        for cpu_id in self.allowed_cpus:
            if cpu_id in seen:
                continue
            cpu = by_id[cpu_id]
            members = tuple(sorted(allowed.intersection(cpu.siblings)))
            seen.update(members)
            cores.append(Core(members, cpu.socket, cpu.node))
        return tuple(sorted(cores, key=lambda core: (core.socket, core.node, core.cpus[0])))

    def all_cores(self) -> tuple[Core, ...]:
        """Return every core of the machine with a CPU online, whether this process may use it or not."""
        cores = {cpu.siblings: Core(cpu.siblings, cpu.socket, cpu.node) for cpu in self.cpus if cpu.online}
        return tuple(sorted(cores.values(), key=lambda core: (core.socket, core.node, core.cpus[0])))

    def cpu_nodes(self) -> tuple[NumaNode, ...]:
        """Return the nodes with CPUs, one for each distinct CPU list (fake NUMA repeats lists), by id."""
        first: dict[tuple[int, ...], NumaNode] = {}
        for node in self.nodes:
            if node.cpus:
                first.setdefault(node.cpus, node)
        return tuple(first.values())

    def num_nodes_of_socket(self, socket: int) -> int:
        """Return how many CPU nodes a socket has: above 1 with SNC or NPS."""
        members = {cpu.id for cpu in self.cpus if cpu.socket == socket}
        return sum(1 for node in self.cpu_nodes() if members.intersection(node.cpus))

    def memory_nodes_of(self, node_id: int) -> tuple[int, ...]:
        """Return the allowed nodes whose memory is local to the CPUs of a node.

        That is the node itself, all nodes with the same CPUs under fake NUMA, or the nearest node with memory where the
        node has none or cpuset.mems forbids it. Empty when no node with memory is allowed, or none is known.
        """
        if not self.has_numa:
            return ()
        own = self.node(node_id)
        usable = [node for node in self.nodes if node.allowed and node.memory_bytes > 0]
        local = tuple(node.id for node in usable if node.id == node_id or (node.cpus and node.cpus == own.cpus))
        if local:
            return local
        ranked = sorted((own.distances.get(node.id, 255), node.kind != "dram", node.id) for node in usable)
        return (ranked[0][2],) if ranked else ()

    def hbm_node_of(self, node_id: int) -> int | None:
        """Return the flat-mode HBM node that belongs to a CPU node, None without one.

        Pairs are taken nearest first; among equals both sides keep their order, so no HBM node serves two CPU nodes
        while another serves none.
        """
        owners = [node for node in self.cpu_nodes() if node.kind != "cpu-only"]
        hbm = [node for node in self.nodes if node.kind == "hbm" and node.allowed]
        pairs = sorted(
            (owner.distances.get(node.id, 255), abs(i * len(hbm) - j * len(owners)), owner.id, node.id)
            for i, owner in enumerate(owners)
            for j, node in enumerate(hbm)
        )
        paired: dict[int, int] = {}
        for _, _, owner_id, hbm_id in pairs:
            if owner_id not in paired and hbm_id not in paired.values():
                paired[owner_id] = hbm_id
        return paired.get(self._representative(node_id))

    def _representative(self, node_id: int) -> int:
        cpus = self.node(node_id).cpus
        return next((node.id for node in self.cpu_nodes() if node.cpus == cpus), node_id)
