"""The machines that are tested: what QEMU is told of each, and what their hardware means for ranks.

What ranks must get is derived from these descriptions alone, so that nothing is compared with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One NUMA node of a machine; `near` is the node whose CPUs are nearest to memory that has none of its own.

    Bandwidth is what the firmware's HMAT says.
    """

    cpus: tuple[int, ...] = ()
    memory_mib: int = 512
    bandwidth_gb_per_s: int | None = None
    near: int | None = None


@dataclass(frozen=True)
class Machine:
    """Hardware as QEMU builds it: CPUs are numbered socket by socket, SMT siblings next to each other."""

    name: str
    num_sockets: int
    cores_per_socket: int
    threads_per_core: int
    nodes: tuple[Node, ...]
    distance: Callable[[int, int], int] = lambda a, b: 21
    kernel_arguments: str = ""
    # How many nodes the kernel makes of each one (numa=fake).
    num_parts: int = 1

    @property
    def num_cpus(self) -> int:
        return self.num_sockets * self.cores_per_socket * self.threads_per_core

    def socket_of(self, cpu: int) -> int:
        return cpu // (self.cores_per_socket * self.threads_per_core)

    def node_of(self, cpu: int) -> int:
        return next(number for number, node in enumerate(self.nodes) if cpu in node.cpus)

    def first_threads(self) -> tuple[int, ...]:
        """The CPU of each core that comes first."""
        return tuple(range(0, self.num_cpus, self.threads_per_core))

    def cpu_nodes(self) -> tuple[int, ...]:
        return tuple(number for number, node in enumerate(self.nodes) if node.cpus)

    def memory_of(self, node: int) -> tuple[int, ...]:
        """The kernel's numbers of a node's own memory."""
        first = node * self.num_parts
        return tuple(range(first, first + self.num_parts)) if self.nodes[node].memory_mib else ()

    def cores_of(self, node: int) -> set[int]:
        return set(self.nodes[node].cpus).intersection(self.first_threads())

    def hbm_of(self, node: int) -> int | None:
        """The node with memory that is nearest to this one's CPUs and faster than their own."""
        own = self.nodes[node].bandwidth_gb_per_s or 0
        found = (
            number
            for number, other in enumerate(self.nodes)
            if other.near == node and (other.bandwidth_gb_per_s or 0) > own
        )
        return next(found, None)

    def qemu_arguments(self) -> list[str]:
        """Returns QEMU's arguments for processors, nodes and what the firmware says of them."""
        has_hmat = any(node.bandwidth_gb_per_s for node in self.nodes)
        words = ["-machine", "q35,hmat=on" if has_hmat else "q35"]
        # With another vendor the kernel does not believe in SMT here.
        words += ["-cpu", "max,vendor=GenuineIntel"]
        sizes = f"sockets={self.num_sockets},cores={self.cores_per_socket},threads={self.threads_per_core}"
        words += ["-smp", f"{self.num_cpus},{sizes}", "-m", str(sum(node.memory_mib for node in self.nodes))]
        for number, node in enumerate(self.nodes):
            words += self._node_arguments(number, node, has_hmat)
        numbers = range(len(self.nodes))
        for a, b in ((a, b) for a in numbers for b in numbers if a < b):
            words += ["-numa", f"dist,src={a},dst={b},val={self.distance(a, b)}"]
        if has_hmat:
            words += [word for entry in self._hmat_entries() for word in ("-numa", f"hmat-lb,{entry}")]
        return words

    def _node_arguments(self, number: int, node: Node, has_hmat: bool) -> list[str]:
        words = []
        entry = f"node,nodeid={number}"
        if node.memory_mib:
            words += ["-object", f"memory-backend-ram,id=memory{number},size={node.memory_mib}M"]
            entry += f",memdev=memory{number}"
        if node.cpus:
            entry += f",cpus={node.cpus[0]}-{node.cpus[-1]}"
        if has_hmat:
            entry += f",initiator={number if node.near is None else node.near}"
        return [*words, "-numa", entry]

    def _hmat_entries(self) -> Iterator[str]:
        for initiator in self.cpu_nodes():
            for target, node in enumerate(self.nodes):
                if node.memory_mib:
                    pair = f"initiator={initiator},target={target},hierarchy=memory"
                    latency_ns = 10 * self.distance(initiator, target) if initiator != target else 100
                    yield f"{pair},data-type=access-latency,latency={latency_ns}"
                    yield f"{pair},data-type=access-bandwidth,bandwidth={node.bandwidth_gb_per_s}G"


def _cpu_range(node: int, num_cpus: int) -> tuple[int, ...]:
    return tuple(range(node * num_cpus, (node + 1) * num_cpus))


def _xeon_max_distance(a: int, b: int) -> int:
    """Nodes 0 to 3 are the CPUs', 4 to 7 the HBM of each; two of them are one socket."""
    if a % 4 == b % 4:
        return 13
    same_socket = a % 4 // 2 == b % 4 // 2
    with_hbm = a > 3 or b > 3
    return (14 if with_hbm else 12) if same_socket else (23 if with_hbm else 21)


TWO_SOCKETS = Machine("two-sockets", 2, 2, 2, (Node(_cpu_range(0, 4)), Node(_cpu_range(1, 4))))
SNC2_HBM = Machine(
    "snc2-hbm",
    2,
    4,
    2,
    (
        *(Node(_cpu_range(number, 4), bandwidth_gb_per_s=200) for number in range(4)),
        *(Node(memory_mib=128, bandwidth_gb_per_s=700, near=number) for number in range(4)),
    ),
    _xeon_max_distance,
)
ONE_NODE = Machine("one-node", 1, 4, 1, (Node(_cpu_range(0, 4), memory_mib=768),))
# Memory without CPUs that is slower than their own, as CXL memory is.
SLOW_MEMORY = Machine(
    "slow-memory",
    1,
    2,
    1,
    (Node(_cpu_range(0, 2), 512, bandwidth_gb_per_s=200), Node(memory_mib=256, bandwidth_gb_per_s=25, near=0)),
    lambda a, b: 14,
)
# The second node has no memory, the third no CPUs; of its speed firmware says nothing.
ODD_MEMORY = Machine(
    "odd-memory",
    2,
    2,
    1,
    (Node(_cpu_range(0, 2), 768), Node(_cpu_range(1, 2), 0), Node(memory_mib=256)),
    lambda a, b: 40 if 2 in (a, b) else 21,
)
# The kernel divides the memory of each node in two: nodes 0 and 1, then 2 and 3.
FAKE_NUMA = Machine(
    "fake-numa", 2, 2, 2, (Node(_cpu_range(0, 4)), Node(_cpu_range(1, 4))), kernel_arguments="numa=fake=2U", num_parts=2
)
