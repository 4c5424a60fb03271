"""Readings of the machine's ceilings, taken between measurements, so that each is judged by its own minutes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from corebound.kernels.gemm_probe import measure_gemm
from corebound.kernels.memory_probe import bytes_beyond_caches, measure_read
from corebound.topology import Topology

_NUM_READS = 5
_NUM_PRODUCTS = 5
_GEMM_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the machine gave at one moment: reads from memory, and products of bfloat16 matrices."""

    read_gb_per_s: float
    best_read_gb_per_s: float
    gemm_gflop_per_s: float


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """Measures what the cores `cpus` can do together."""

    topology: Topology
    cpus: tuple[int, ...]
    gemm_size: int = _GEMM_SIZE

    @classmethod
    def of(cls, topology: Topology, cpus: Sequence[int] | None = None) -> Ruler:
        """Return the ruler of some CPUs; of one CPU of each core when none are named."""
        if cpus is None:
            cpus = [core.cpus[0] for core in topology.physical_cores()]
        return cls(topology=topology, cpus=tuple(sorted(set(cpus) & os.sched_getaffinity(0))))

    def read(self) -> Reading:
        """Return what the machine gives now.

        Raises: KernelError when it cannot be measured.
        """
        size = bytes_beyond_caches(self.topology, self.cpus)
        memory = measure_read(self.cpus, bytes_per_thread=size, num_repetitions=_NUM_READS)
        gemm = measure_gemm("bfloat16", len(self.cpus), size=self.gemm_size, num_repetitions=_NUM_PRODUCTS)
        return Reading(
            read_gb_per_s=memory.median_gb_per_s,
            best_read_gb_per_s=memory.best_gb_per_s,
            gemm_gflop_per_s=gemm.median_gflop_per_s,
        )
