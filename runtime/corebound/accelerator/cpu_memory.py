"""Memory of the CPU accelerator: what host, cgroup and bound NUMA nodes leave this process, and its peak."""

from __future__ import annotations

import ctypes
import functools
import re

from corebound.errors import HostError
from corebound.logs import get_logger
from corebound.topology import ProcessPlace, Topology, parse_cpu_list, read_process_place, read_topology
from corebound.topology.cgroups import read_cgroup
from corebound.topology.memory import read_memory
from corebound.topology.tree import Tree

_LOGGER = get_logger(__name__)
# To /proc/self/clear_refs (Linux 4.0 and later): let VmHWM begin anew.
_RESET_PEAK = "5"


def limits(tree: Tree, topology: Topology, place: ProcessPlace) -> tuple[int, int]:
    """Return the bytes that the process could have at most, and those that it can still take.

    Both are the least of what the host, every cgroup on the path, and the NUMA nodes that the process is bound to have.
    """
    memory = read_memory(tree, read_cgroup(tree))
    totals, available = [memory.total_bytes], [memory.available_bytes]
    if memory.limit_bytes is not None:
        totals.append(memory.limit_bytes)
    bound = bound_nodes(topology, place)
    if bound:
        totals.append(sum(topology.node(node).memory_bytes for node in bound))
        available.append(sum(_available_of_node(tree, node) for node in bound))
    return min(totals), min(available)


def bound_nodes(topology: Topology, place: ProcessPlace) -> tuple[int, ...]:
    """Return the nodes that all memory of the process must come from; empty when every node with memory may give some.

    Only policy `bind` and the cpuset limit; preferred and interleaved memory spills to other nodes.
    """
    with_memory = {node.id for node in topology.nodes if node.memory_bytes}
    allowed = with_memory.intersection(parse_cpu_list(place.mems_allowed_list))
    if place.memory_policy == "bind":
        allowed = allowed.intersection(place.memory_nodes)
    return () if allowed == with_memory else tuple(sorted(allowed))


def limits_here() -> tuple[int, int]:
    """Return `limits` of this process.

    Raises: HostError where /proc or /sys cannot be read.
    """
    return limits(Tree(), _topology(), read_process_place())


def resident_bytes() -> int:
    """Return the bytes of this process that are in memory now.

    Raises: HostError where the kernel does not say it.
    """
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """Return the most bytes that were ever in memory at once, since the last reset: the kernel's own count.

    Raises: HostError where the kernel does not say it.
    """
    return _status_bytes("VmHWM")


def reset_peak() -> None:
    """Let the peak begin anew. Where the kernel refuses, a warning says once that it counts from the start."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:  # noqa: PTH123 - beside the reads of Tree
            file.write(_RESET_PEAK)
    except OSError as error:
        _warn_peak_stays(error.strerror or str(error))


def give_back() -> None:
    """Give the pages that the C library holds and does not use back to the system, where it is one that can."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> ctypes._FuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None


@functools.cache
def _warn_peak_stays(reason: str) -> None:
    _LOGGER.warning("peak memory counts from the start of the process: /proc/self/clear_refs: %s", reason)


@functools.cache
def _topology() -> Topology:
    # Which nodes there are and how large does not change; what is free is read every time.
    return read_topology()


def _available_of_node(tree: Tree, node: int) -> int:
    # A node has no MemAvailable: what is free, and what the kernel drops before it refuses memory.
    text = tree.text(f"sys/devices/system/node/node{node}/meminfo") or ""
    names = ("MemFree", r"Inactive\(file\)", "SReclaimable")
    found = (re.search(rf"\b{name}:\s+(\d+) kB", text) for name in names)
    return sum(int(match[1]) << 10 for match in found if match)


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", Tree().text("proc/self/status") or "", re.MULTILINE)
    if match is None:
        raise HostError(f"/proc/self/status: no {name}", hint="check that /proc is mounted")
    return int(match[1]) << 10
