"""Describes a machine for a report: what decides speed, and nothing that names it."""

from __future__ import annotations

import platform
from typing import Any

import torch

from corebound.topology import Topology


def describe(topology: Topology) -> dict[str, Any]:
    """Return processor, cores, caches, memory and software, without host names and paths."""
    level = max((cache.level for cache in topology.caches), default=0)
    return {
        "processor": topology.isa.brand,
        "isa": topology.isa.best,
        "num_cores": len(topology.physical_cores()),
        "num_sockets": len(topology.sockets),
        "num_numa_nodes": len(topology.cpu_nodes()),
        "threads_per_core": topology.threads_per_core,
        "last_level_cache_bytes": sum(cache.size_bytes for cache in topology.caches if cache.level == level),
        "memory_bytes": topology.memory.total_bytes,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
