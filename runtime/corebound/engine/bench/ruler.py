"""Readings of the machine's ceilings, taken between measurements, so that each is judged by its own minutes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from corebound.kernels.gemm_probe import measure_gemm
from corebound.kernels.latency_probe import are_alike, distance_ns, usual_distance_ns
from corebound.kernels.memory_probe import bytes_beyond_caches, measure_read
from corebound.topology import Topology

_NUM_READS = 5
_NUM_PRODUCTS = 5
_GEMM_SIZE = 4096
_MAX_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the machine gave at one moment: reads from memory, and products of bfloat16 matrices.

    `line_ns` is how long a cache line takes from the first CPU to the last, see `distance_ns`.
    """

    read_gb_per_s: float
    best_read_gb_per_s: float
    gemm_gflop_per_s: float
    line_ns: float = 0.0
    is_steady: bool = True

    def is_alike(self, other: Reading) -> bool:
        """Return whether the processors lay the same in another reading, and did not move in either."""
        return self.is_steady and other.is_steady and are_alike(self.line_ns, other.line_ns)


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
        """Return what the machine gives now; again where its processors were moved meanwhile.

        Raises: KernelError when it cannot be measured.
        """
        size = bytes_beyond_caches(self.topology, self.cpus)
        for _ in range(_MAX_TRIES):
            before_ns = distance_ns(self.cpus)
            memory = measure_read(self.cpus, bytes_per_thread=size, num_repetitions=_NUM_READS)
            gemm = measure_gemm("bfloat16", len(self.cpus), size=self.gemm_size, num_repetitions=_NUM_PRODUCTS)
            if is_steady := are_alike(before_ns, after_ns := distance_ns(self.cpus)):
                break
        return Reading(
            read_gb_per_s=memory.median_gb_per_s,
            best_read_gb_per_s=memory.best_gb_per_s,
            gemm_gflop_per_s=gemm.median_gflop_per_s,
            line_ns=after_ns,
            is_steady=is_steady,
        )

    def line_ns(self) -> float:
        """Return how long a cache line takes from the first CPU to the last now, 0 where there is one.

        Raises: KernelError when it cannot be measured.
        """
        return distance_ns(self.cpus)

    def usual_line_ns(self) -> float:
        """Return how long a cache line takes from the first CPU to the last most of the time, 0 where there is one.

        Raises: KernelError when it cannot be measured.
        """
        return usual_distance_ns(self.cpus)
