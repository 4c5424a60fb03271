"""Measures the ceilings of this machine in a few seconds, all cores at once. Needs libcorebound, but not torch."""

from __future__ import annotations

import ctypes
import socket
import statistics
from collections.abc import Sequence
from contextlib import closing

from corebound import native
from corebound.engine.predict.ceilings import Ceilings, SumTime
from corebound.engine.predict.model import attention_flop
from corebound.errors import KernelError
from corebound.kernels.memory_probe import measure_read
from corebound.kernels.panel_format import Kind
from corebound.kernels.panel_probe import FORMATS, AlignedMemory, PanelProbe, ProductRate, on_each
from corebound.models.decoder_probe import HEAD_DIM, DecoderProbe, ProbeShape
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
_PROMPT_TOKENS = 512
_QUERY_WIDTH = ProbeShape(num_layers=1).num_heads * HEAD_DIM
_CACHE_MULTIPLE = 4
_LEAST_S = 1e-4


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
    read = measure_read(cpus, bytes_per_thread=per_thread, num_repetitions=_REPETITIONS)
    prompt_layer_s = _layer_seconds(cpus, _PROMPT_TOKENS)
    prompts = tuple(_prompt_rate(cpus, kind, prompt_layer_s) for kind in FORMATS)
    return Ceilings(
        host=socket.gethostname(),
        isa=isa,
        num_cores=len(cpus),
        num_numa_nodes=len(topology.cpu_nodes()),
        memory_bytes=topology.memory.available_bytes,
        read_gb_per_s=read.median_gb_per_s,
        products=(*_products(cpus, per_thread), *prompts),
        sums=_sums(cpus),
        layer_us=_layer_seconds(cpus, 1) * 1e6,
        attention_gflop_per_s=attention_flop(_QUERY_WIDTH, 0, _PROMPT_TOKENS) / prompt_layer_s * 1e-9,
    )


def _products(cpus: Sequence[int], per_thread: int) -> tuple[ProductRate, ...]:
    probe = PanelProbe(cpus, per_thread)
    try:
        sizes = sorted({_COMPUTED_BYTES, min(per_thread, 128 * _MIB), per_thread})
        rates = []
        for kind in FORMATS:
            rates += [probe.measure(kind, 1, size, _REPETITIONS) for size in sizes]
            rates += [probe.measure(kind, rows, _COMPUTED_BYTES, _REPETITIONS) for rows in _ROWS]
        return tuple(rates)
    finally:
        probe.close()


def _layer_seconds(cpus: Sequence[int], tokens: int) -> float:
    """Return what a layer costs beside its products: of a prompt of `tokens`, or of one token."""
    shape = ProbeShape(num_layers=4 if tokens > 1 else 16)
    with closing(DecoderProbe(cpus, shape, tokens=tokens)) as probe:
        return probe.seconds(_REPETITIONS if tokens > 1 else 20, whole=True) / shape.num_layers


def _prompt_rate(cpus: Sequence[int], kind: Kind, beside_s: float) -> ProductRate:
    """Return the rate of products in a prompt, whose layers take `beside_s` for all else.

    A decoder's own team and buffers do them: tiles are made once for all members, and the weights come from memory.
    """
    one, two = (ProbeShape(num_layers=count, hidden=2048, inner=5632, form=FORMATS[kind]) for count in (1, 2))
    with (
        closing(DecoderProbe(cpus, one, tokens=_PROMPT_TOKENS)) as short,
        closing(DecoderProbe(cpus, two, tokens=_PROMPT_TOKENS)) as long,
    ):
        # What both begin and end with falls out.
        layer_s = long.seconds(_REPETITIONS, whole=True) - short.seconds(_REPETITIONS, whole=True)
    # They were measured on a machine that may have other work: what is left is not to become nothing.
    products_s = max(layer_s - beside_s, layer_s / 2, _LEAST_S)
    return ProductRate(
        kind=kind,
        num_rows=_PROMPT_TOKENS,
        matrix_bytes=sum(one.form.matrix_bytes(*size) for size in one.matrices),
        weights_per_s=one.layer_weights / products_s,
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
