"""Measures the ceilings of this machine in a few seconds, all cores at once. Needs libcorebound, but not torch."""

from __future__ import annotations

import ctypes
import socket
import statistics
from collections.abc import Sequence
from functools import partial

from corebound import native
from corebound.engine.predict import decoder_times
from corebound.engine.predict.ceilings import AttentionRate, Ceilings, InputTime, SumTime
from corebound.engine.predict.held import Held
from corebound.errors import KernelError
from corebound.kernels.memory_probe import measure_read
from corebound.kernels.panel_probe import FORMATS, AlignedMemory, PanelProbe, ProductRate, on_each
from corebound.topology import Topology
from corebound.topology.native_report import native_active_isa

_MIB = 1 << 20
_MOST_BYTES = 1 << 30  # of one set of weights, more only where many cores have little each
_LEAST_PER_THREAD = 32 * _MIB
_COMPUTED_BYTES = 8 * _MIB  # of each thread's weights, where many rows meet them
_ROWS = (4, 16, 64)
_REPETITIONS = 3
_SUM_BYTES = (4096, 16384, 65536, 1 << 20, 4 << 20)
_SUM_ROUNDS = (2000, 1000, 400, 40, 12)
_CACHE_MULTIPLE = 4


def measure_ceilings(topology: Topology) -> Ceilings:
    """Return what one thread on each physical core reaches now.

    Raises: KernelError where the native library is missing, or memory for the measurement.
    """
    cpus = [core.cpus[0] for core in topology.physical_cores()]
    isa = native_active_isa()
    per_thread = max(_LEAST_PER_THREAD, _MOST_BYTES // len(cpus))
    # What other processes need stays theirs; below the least, caches would be measured.
    per_thread = min(per_thread, topology.memory.available_bytes // _CACHE_MULTIPLE // len(cpus)) // _MIB * _MIB
    if per_thread < _COMPUTED_BYTES:
        raise KernelError(
            f"ceilings: {topology.memory.available_bytes >> 20} MiB of memory are available, expected "
            f"{_CACHE_MULTIPLE * len(cpus) * _COMPUTED_BYTES >> 20}",
            hint="free memory, or take --ceilings of a file measured at another time",
        )
    held = Held(cpus)
    read = held(lambda: measure_read(cpus, bytes_per_thread=per_thread, num_repetitions=_REPETITIONS))
    # A rank has cores of one node: what its members wait for each other is measured there.
    near = [core.cpus[0] for core in topology.physical_cores() if core.node == topology.physical_cores()[0].node]
    layer_s = held(lambda: decoder_times.layer_seconds(near))
    products, inputs, attention = _from_memory(cpus, near, per_thread, layer_s, read.median_gb_per_s, held)
    return Ceilings(
        host=socket.gethostname(),
        isa=isa,
        num_cores=len(cpus),
        num_numa_nodes=len(topology.cpu_nodes()),
        memory_bytes=topology.memory.available_bytes,
        read_gb_per_s=read.median_gb_per_s,
        products=(*products, *held(lambda: decoder_times.prompt_rates(cpus))),
        inputs=inputs,
        attention=attention,
        sums=held(lambda: _sums(cpus)),
        layer_us=layer_s * 1e6,
    )


def _from_memory(
    cpus: Sequence[int], near: Sequence[int], per_thread: int, layer_s: float, read_gb_per_s: float, held: Held
) -> tuple[tuple[ProductRate, ...], tuple[InputTime, ...], tuple[AttentionRate, ...]]:
    """Return what needs weights in memory: products of all cores, what inputs take, and rates of attention.

    The last two are of the cores `near` each other; the rates are what all cores reach that way.
    """
    probe = PanelProbe(cpus, per_thread)
    products = _products(probe, held)
    if len(near) < len(cpus):
        del probe  # its memory is needed for the next one
        probe = PanelProbe(near, per_thread)
    part = len(near) / len(cpus)
    attention = tuple(
        AttentionRate(
            group_heads=rate.group_heads,
            cache_gb_per_s=rate.cache_gb_per_s / part,
            prompt_gflop_per_s=rate.prompt_gflop_per_s / part,
        )
        for rate in held(lambda: decoder_times.attention_rates(probe, read_gb_per_s * part))
    )
    inputs = tuple(held(partial(decoder_times.input_time, probe, kind, layer_s)) for kind in FORMATS)
    return products, inputs, attention


def _products(probe: PanelProbe, held: Held) -> tuple[ProductRate, ...]:
    sizes = sorted({_COMPUTED_BYTES, min(probe.bytes_per_thread, 128 * _MIB), probe.bytes_per_thread})
    wanted = [*((1, size) for size in sizes), *((rows, _COMPUTED_BYTES) for rows in _ROWS)]
    return tuple(
        held(partial(probe.measure, kind, rows, size, _REPETITIONS)) for kind in FORMATS for rows, size in wanted
    )


def _sums(cpus: Sequence[int]) -> tuple[SumTime, ...]:
    """Return times of the floor of an all-reduce: what the hardware needs, see csrc/bench/pingpong.cpp."""
    if len(cpus) < 2:
        return ()
    # Neighbours, and the farthest apart.
    return tuple(
        SumTime(num_ranks=2, num_bytes=size, time_us=max(_floor(pair, size, rounds) for pair in _pairs(cpus)))
        for size, rounds in zip(_SUM_BYTES, _SUM_ROUNDS, strict=True)
    )


def _pairs(cpus: Sequence[int]) -> set[tuple[int, int]]:
    return {(cpus[0], cpus[1]), (cpus[0], cpus[-1])}


def _floor(cpus: tuple[int, int], num_bytes: int, num_rounds: int) -> float:
    """Return the microseconds of the faster kind of store; threads stand for ranks, memory is memory."""
    library = native.core_library()
    library.corebound_bench_floor_bytes.restype = ctypes.c_size_t
    shared_bytes = library.corebound_bench_floor_bytes(len(cpus), ctypes.c_size_t(num_bytes))
    medians = []
    for streaming in (0, 1):
        shared = AlignedMemory(shared_bytes)

        def run(rank: int, shared: AlignedMemory = shared, streaming: int = streaming) -> list[float]:
            payload, times = AlignedMemory(num_bytes), (ctypes.c_double * num_rounds)()
            code = library.corebound_bench_floor(
                ctypes.c_void_p(shared.address),
                rank,
                len(cpus),
                ctypes.c_void_p(payload.address),
                ctypes.c_size_t(num_bytes),
                streaming,
                ctypes.c_int64(0),
                ctypes.c_int64(num_rounds),
                times,
            )
            if code:
                raise KernelError(f"floor of an all-reduce: {num_bytes} bytes cannot be measured")
            return list(times)

        medians.append(statistics.median(on_each(cpus, run)[0]))
    return min(medians)
