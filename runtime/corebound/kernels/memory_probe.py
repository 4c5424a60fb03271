"""Measures how fast memory can be read, which is the ceiling of decode. Needs the native library, but not torch."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from corebound import native
from corebound.errors import KernelError
from corebound.topology import Topology

_MIN_BYTES_PER_THREAD = 32 << 20
# Caches do not evict in strict order: a buffer only a few times their size is partly served by them.
_CACHE_MULTIPLE = 8


@dataclass(frozen=True, kw_only=True)
class ReadBandwidth:
    """What the threads on `cpus` read together, in 10^9 bytes a second: median and best of the repetitions.

    `loop` is the way to read that was fastest here; `huge_page_fraction` how much of the memory was in huge pages.
    """

    cpus: tuple[int, ...]
    bytes_per_thread: int
    median_gb_per_s: float
    best_gb_per_s: float
    loop: str = ""
    huge_page_fraction: float = 0.0


def measure_read(cpus: Sequence[int], *, bytes_per_thread: int, num_repetitions: int = 9) -> ReadBandwidth:
    """Return the read bandwidth of one pinned thread on each of `cpus`, each with memory of its own.

    The threads first try several loops, with and without prefetching, and use the one that is fastest here.

    Raises: KernelError when a CPU may not be used or the memory is not there.
    """
    if not cpus:
        raise KernelError("memory bandwidth: expected at least one CPU, found none")
    rates = (ctypes.c_double * num_repetitions)()
    loop, huge_bytes = ctypes.c_char_p(), ctypes.c_uint64()
    error = ctypes.create_string_buffer(256)
    status = native.core_library().corebound_bench_memory(
        (ctypes.c_int32 * len(cpus))(*cpus),
        len(cpus),
        ctypes.c_uint64(bytes_per_thread),
        num_repetitions,
        rates,
        ctypes.byref(loop),
        ctypes.byref(huge_bytes),
        error,
        ctypes.c_size_t(len(error)),
    )
    if status != 0:
        raise KernelError(f"memory bandwidth: {error.value.decode()}")
    return ReadBandwidth(
        cpus=tuple(cpus),
        bytes_per_thread=bytes_per_thread,
        median_gb_per_s=statistics.median(rates),
        best_gb_per_s=max(rates),
        loop=(loop.value or b"").decode(),
        huge_page_fraction=min(1.0, huge_bytes.value / (bytes_per_thread * len(cpus))),
    )


def bytes_beyond_caches(topology: Topology, cpus: Sequence[int]) -> int:
    """Return a buffer size for each of `cpus` with which no cache can hold a useful part of the whole.

    That is eight times the last-level caches within reach of these CPUs, shared out, but at least 32 MiB each. It is
    never more than half of what memory is available.
    """
    level = max((cache.level for cache in topology.caches), default=0)
    used = set(cpus)
    reach = sum(cache.size_bytes for cache in topology.caches if cache.level == level and used & set(cache.cpus))
    num_threads = max(1, len(used))
    wanted = max(_MIN_BYTES_PER_THREAD, _CACHE_MULTIPLE * reach // num_threads)
    return min(wanted, topology.memory.available_bytes // 2 // num_threads)


def core_sets(topology: Topology, *, max_single_cores: int = 16) -> list[tuple[int, ...]]:
    """Return the sets of CPUs worth measuring, one CPU for each core: cores alone, NUMA nodes, the whole machine.

    On a machine of more than `max_single_cores` cores only one core of each NUMA node is measured alone.
    """
    cores = topology.physical_cores()
    nodes: dict[int, list[int]] = {}
    for core in cores:
        nodes.setdefault(core.node, []).append(core.cpus[0])
    if len(cores) <= max_single_cores:
        alone = [(core.cpus[0],) for core in cores]
    else:
        alone = [(cpus[0],) for cpus in nodes.values()]
    groups = [tuple(cpus) for cpus in nodes.values()] if len(nodes) > 1 else []
    return list(dict.fromkeys([*alone, *groups, tuple(core.cpus[0] for core in cores)]))
