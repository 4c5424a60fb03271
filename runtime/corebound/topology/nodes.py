"""NUMA nodes from sysfs: sparse ids, memory-only nodes, fake NUMA, HBM in flat and in cache mode."""

from __future__ import annotations

import re
from dataclasses import replace

from corebound.topology.model import CgroupLimits, Cpu, NumaNode
from corebound.topology.tree import Tree, parse_size

_BASE = "sys/devices/system/node"
# The kernel's own name for it; memory in the CPUs' package is nearer, that of another socket or of CXL often is not.
_REMOTE_DISTANCE = 20


def read_nodes(tree: Tree, cpus: tuple[Cpu, ...], cgroup: CgroupLimits, warnings: list[str]) -> tuple[NumaNode, ...]:
    """Return the online nodes by id; one node 0 with every CPU where the kernel shows none.

    Raises: HostError for a file of the kernel that is malformed.
    """
    online = {cpu.id for cpu in cpus if cpu.online}
    ids = tree.cpu_list(f"{_BASE}/online") or tree.numbered(_BASE, "node")
    ids = tuple(node for node in ids if tree.is_dir(f"{_BASE}/node{node}"))
    if not ids:
        whole = tree.text("proc/meminfo") or ""
        total, free = _meminfo_bytes(whole, "MemTotal"), _meminfo_bytes(whole, "MemFree")
        return (NumaNode(0, tuple(sorted(online)), total, distances={0: 10}, free_bytes=free),)
    nodes = [_read_node(tree, node, ids, online, cgroup) for node in ids]
    homeless = online.difference(*(node.cpus for node in nodes))
    if homeless:
        warnings.append(f"{len(homeless)} CPUs belong to no NUMA node; node {ids[0]} is taken")
        nodes[0] = replace(nodes[0], cpus=tuple(sorted({*nodes[0].cpus, *homeless})))
    if len(nodes) == 1:
        # A node's own meminfo misses memory that a hypervisor adds later.
        whole = tree.text("proc/meminfo") or ""
        nodes[0] = replace(
            nodes[0],
            memory_bytes=_meminfo_bytes(whole, "MemTotal") or nodes[0].memory_bytes,
            free_bytes=_meminfo_bytes(whole, "MemFree") or nodes[0].free_bytes,
        )
    return _with_kinds(tree, nodes, warnings)


def assign_nodes(cpus: tuple[Cpu, ...], nodes: tuple[NumaNode, ...]) -> tuple[Cpu, ...]:
    """Return the CPUs with their node: the lowest one that lists them."""
    owner: dict[int, int] = {}
    for node in nodes:
        for cpu in node.cpus:
            owner.setdefault(cpu, node.id)
    return tuple(replace(cpu, node=owner[cpu.id]) if cpu.online else cpu for cpu in cpus)


def _read_node(tree: Tree, node: int, ids: tuple[int, ...], online: set[int], cgroup: CgroupLimits) -> NumaNode:
    base = f"{_BASE}/node{node}"
    meminfo = tree.text(f"{base}/meminfo") or ""
    distances = (tree.text(f"{base}/distance") or "").split()
    cpus = tree.cpu_list(f"{base}/cpulist") or ()
    # The kernel writes one distance for each online node, in the order of ids, with no gaps for missing ones.
    known = dict(zip(ids, (int(text) for text in distances), strict=True)) if len(distances) == len(ids) else {node: 10}
    return NumaNode(
        id=node,
        cpus=tuple(cpu for cpu in cpus if cpu in online),
        memory_bytes=_meminfo_bytes(meminfo, "MemTotal"),
        free_bytes=_meminfo_bytes(meminfo, "MemFree"),
        distances=known,
        memory_side_cache_bytes=_side_cache_bytes(tree, base),
        allowed=cgroup.memory_nodes is None or node in cgroup.memory_nodes,
    )


def _with_kinds(tree: Tree, nodes: list[NumaNode], warnings: list[str]) -> tuple[NumaNode, ...]:
    with_cpus = [node for node in nodes if node.cpus]
    memory_only = [node for node in nodes if not node.cpus and node.memory_bytes]
    bandwidths = {node.id: _bandwidth(tree, node.id) for node in nodes}
    dram = max((bandwidths[node.id] or 0 for node in with_cpus), default=0)
    measured = dram > 0 and all(bandwidths[node.id] for node in memory_only)
    doubt = _doubt_of_hbm(with_cpus, memory_only)
    paired = bool(memory_only) and not doubt
    if memory_only and not measured:
        taken = "flat-mode HBM, one for each CPU node" if paired else f"far memory, since {doubt}"
        ids = ", ".join(str(node.id) for node in memory_only)
        warnings.append(f"firmware states no bandwidth for memory-only nodes {ids}: taken for {taken}")
    fast = {
        node.id for node in memory_only if (measured and (bandwidths[node.id] or 0) > dram) or (not measured and paired)
    }
    kinds: list[NumaNode] = []
    for node in nodes:
        if node.cpus:
            kinds.append(node if node.memory_bytes else replace(node, kind="cpu-only"))
        else:
            kinds.append(replace(node, kind="hbm" if node.id in fast else "far"))
    return tuple(kinds)


def _doubt_of_hbm(with_cpus: list[NumaNode], memory_only: list[NumaNode]) -> str:
    """Return what speaks against memory-only nodes of unknown speed being HBM; empty when nothing does."""
    if len(memory_only) != len({node.cpus for node in with_cpus if node.memory_bytes}):
        return "they do not pair with CPU nodes"
    nearest = (
        min((node.distances.get(memory.id, _REMOTE_DISTANCE) for node in with_cpus), default=_REMOTE_DISTANCE)
        for memory in memory_only
    )
    if any(distance >= _REMOTE_DISTANCE for distance in nearest):
        return "they are as far from every CPU as another socket"
    return ""


def _bandwidth(tree: Tree, node: int) -> int | None:
    """Return the read bandwidth in MiB/s that firmware (HMAT) states for the CPUs nearest to a node."""
    return tree.integer(f"{_BASE}/node{node}/access0/initiators/read_bandwidth")


def _side_cache_bytes(tree: Tree, base: str) -> int:
    indexes = tree.numbered(f"{base}/memory_side_cache", "index")
    return sum(parse_size(tree.text(f"{base}/memory_side_cache/index{index}/size")) for index in indexes)


def _meminfo_bytes(text: str, name: str) -> int:
    match = re.search(rf"\b{name}:\s+(\d+) kB", text)
    return int(match[1]) << 10 if match else 0
