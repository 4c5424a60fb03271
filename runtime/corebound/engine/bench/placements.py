"""Which two cores a sum is timed between: of one cache, and of two."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from corebound.topology import Topology

NEAR, FAR = "near", "far"


def placements(topology: Topology) -> dict[str, tuple[int, int]]:
    """Return a pair of CPUs for each placement that this machine has.

    `near` are cores that share a last-level cache, `far` are cores of two such caches, of two sockets where there are.
    """
    cpus = [core.cpus[0] for core in topology.physical_cores()]
    clusters = cache_clusters(topology)
    pairs: dict[str, tuple[int, int]] = {}
    near = next((cluster for cluster in clusters if len(cluster) > 1), None)
    if near is not None:
        pairs[NEAR] = (near[0], near[1])
    if len(clusters) > 1:
        # Cores come in the order of sockets: the last is as far as there is.
        pairs[FAR] = (clusters[0][0], clusters[-1][-1])
    if not pairs and len(cpus) > 1:
        pairs[NEAR] = (cpus[0], cpus[1])
    return pairs


def cache_clusters(topology: Topology) -> list[tuple[int, ...]]:
    """Return the cores of each last-level cache, one CPU for each core; of all cores where no cache is known."""
    cpus = [core.cpus[0] for core in topology.physical_cores()]
    level = max((cache.level for cache in topology.caches), default=0)
    found = [
        tuple(cpu for cpu in cpus if cpu in cache.cpus)
        for cache in topology.caches
        if cache.level == level and cache.kind != "instruction"
    ]
    return sorted(cluster for cluster in found if cluster) or [tuple(cpus)]


@contextlib.contextmanager
def on_cpus(cpus: Sequence[int]) -> Iterator[None]:
    """Enter with this thread, and what it starts meanwhile, on some CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
