"""Measures how long a cache line takes between two cores, which bounds every barrier between them. Needs no torch."""

from __future__ import annotations

import ctypes
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from corebound import native
from corebound.errors import KernelError
from corebound.topology import Topology

_TRIPS_PER_BLOCK = 200
_NUM_WARM_UP_BLOCKS = 20
_NUM_GLANCE_BLOCKS = 40
_NUM_GLANCES, _GLANCE_EVERY_S = 7, 0.15
# Two cores of one cache differ from two of one core, or of two caches, by 1.7 times and more; readings by a tenth.
LINES_ALIKE = 1.25


@dataclass(frozen=True, kw_only=True)
class LineLatency:
    """How long a cache line takes from one CPU to the other: median and least over blocks of round trips, halved."""

    cpus: tuple[int, int]
    median_ns: float
    best_ns: float


def measure_latency(cpu: int, other_cpu: int, *, num_blocks: int = 200) -> LineLatency:
    """Return how long a cache line takes between two CPUs, each with a pinned thread of its own.

    Raises: KernelError when a CPU may not be used.
    """
    total = num_blocks + _NUM_WARM_UP_BLOCKS
    times = (ctypes.c_double * total)()
    error = ctypes.create_string_buffer(256)
    status = native.core_library().corebound_bench_latency(
        ctypes.c_int32(cpu),
        ctypes.c_int32(other_cpu),
        total,
        _TRIPS_PER_BLOCK,
        times,
        error,
        ctypes.c_size_t(len(error)),
    )
    if status != 0:
        raise KernelError(f"cache-line latency: {error.value.decode()}")
    blocks = list(times)[_NUM_WARM_UP_BLOCKS:]
    return LineLatency(cpus=(cpu, other_cpu), median_ns=statistics.median(blocks), best_ns=min(blocks))


def distance_ns(cpus: Sequence[int]) -> float:
    """Return how long a cache line takes from the first CPU to the last now, 0 where there is one only.

    It tells where a hypervisor has its virtual processors: in one core, in one cache, or in two.

    Raises: KernelError when a CPU may not be used.
    """
    if len(cpus) < 2:
        return 0.0
    return measure_latency(cpus[0], cpus[-1], num_blocks=_NUM_GLANCE_BLOCKS).median_ns


def usual_distance_ns(cpus: Sequence[int]) -> float:
    """Return the median of some distances within a second, 0 where there is one CPU only.

    Raises: KernelError when a CPU may not be used.
    """
    if len(cpus) < 2:
        return 0.0
    found = [distance_ns(cpus)]
    for _ in range(_NUM_GLANCES - 1):
        time.sleep(_GLANCE_EVERY_S)
        found.append(distance_ns(cpus))
    return statistics.median(found)


def are_alike(distance: float, other: float) -> bool:
    """Return whether two distances may be of one placement."""
    return max(distance, other) <= LINES_ALIKE * min(distance, other)


def core_pairs(topology: Topology, *, max_cores: int = 8) -> list[tuple[int, int]]:
    """Return the pairs of CPUs worth measuring, one CPU for each core: all pairs of a small machine.

    On a machine of more than `max_cores` cores: the first core with its neighbour, with one of the middle and with the
    last of its own NUMA node, and the first cores of all NUMA nodes with each other.
    """
    cores = topology.physical_cores()
    if len(cores) <= max_cores:
        return list(itertools.combinations([core.cpus[0] for core in cores], 2))
    nodes: dict[int, list[int]] = {}
    for core in cores:
        nodes.setdefault(core.node, []).append(core.cpus[0])
    first = next(iter(nodes.values()))
    near = [(first[0], other) for other in (*first[1:2], first[len(first) // 2], first[-1]) if other != first[0]]
    return list(dict.fromkeys([*near, *itertools.combinations([cpus[0] for cpus in nodes.values()], 2)]))
