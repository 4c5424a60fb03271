"""One rank of `corebound bench allreduce`: times floor, shared memory and gloo in alternation and writes JSON.

Run it on every rank: `python -m corebound.comm.bench_rank --request JSON`. Rank 0 writes the result to standard output.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import json
import mmap
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist

from corebound import native
from corebound.comm import bench_hosts, fake_hosts, shm_ops
from corebound.comm.base import Collectives
from corebound.comm.hierarchical import HierarchicalCollectives
from corebound.comm.rank_process import leave, run_rank
from corebound.comm.shm import ShmCollectives
from corebound.comm.shm_handshake import MIB, SegmentOptions, SharedMemoryUnavailableError, too_small
from corebound.comm.shm_stale import floor_name
from corebound.config import env
from corebound.errors import CommError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int32": torch.int32}
_CACHE_LINE_BYTES = 64
_WARM_UP = 0.1  # of every block, left out
_BLOCK_S = 0.005  # a block of one provider lasts about this long


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One thing that is timed: `run(n)` returns the microseconds of each of n rounds."""

    provider: str
    entry: str
    run: Callable[[int], list[float]]


class Floor:
    """The memory that the floor's ping-pong runs in, shared by all ranks and without a name after construction."""

    def __init__(self, group: Collectives, job_id: str, num_bytes: int) -> None:
        self._lib = native.core_library()
        self._lib.corebound_bench_floor_bytes.restype = ctypes.c_size_t
        self._lib.corebound_bench_floor_bytes.argtypes = [ctypes.c_int, ctypes.c_size_t]
        self._group = group
        self._num_bytes = num_bytes
        self._next_round = 0
        directory = SegmentOptions().directory
        nonce = group.broadcast_object(secrets.token_hex(4))
        path = directory / floor_name(job_id, nonce)
        with ExitStack() as stack:
            if group.rank == 0:
                stack.callback(path.unlink, missing_ok=True)
                file, error = _reserve(path, self._lib.corebound_bench_floor_bytes(group.size, num_bytes))
                stack.enter_context(file)
            error = group.broadcast_object(error if group.rank == 0 else None)
            if error:
                raise SharedMemoryUnavailableError(f"bench allreduce, memory of the floor: {error}")
            # Rank 0 keeps the file that it has: to close another one would drop its lock.
            if group.rank != 0:
                file = stack.enter_context(path.open("r+b"))
            self._memory = mmap.mmap(file.fileno(), 0)
            group.barrier()
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._payload = aligned_zeros(num_bytes)

    def run(self, num_rounds: int, *, streaming: bool) -> list[float]:
        """Return the microseconds of each round; every rank calls it.

        Raises: CommError for a size that is not whole cache lines, or too little memory between the ranks.
        """
        times = (ctypes.c_double * num_rounds)()
        code = self._lib.corebound_bench_floor(
            ctypes.c_void_p(self._address),
            self._group.rank,
            self._group.size,
            ctypes.c_void_p(self._payload.data_ptr()),
            ctypes.c_size_t(self._num_bytes),
            int(streaming),
            ctypes.c_int64(self._next_round),
            ctypes.c_int64(num_rounds),
            times,
        )
        if code:
            raise CommError(f"floor: {self._num_bytes} bytes between {self._group.size} ranks cannot be measured")
        self._next_round += num_rounds
        return list(times)


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p10, p50, p90 and p99 of some microseconds, under the names of the result."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{p}_us": round(cuts[p - 1], 3) for p in (10, 50, 90, 99)}


def measure(
    group: Collectives, dtype: torch.dtype, num_bytes: int, num_rounds: int, job_id: str
) -> list[dict[str, Any]]:
    """Return one row per provider and entry for one message size; every rank calls it."""
    floor = Floor(group, job_id, -(-num_bytes // _CACHE_LINE_BYTES) * _CACHE_LINE_BYTES)
    timings = _timings(group, dtype, num_bytes, floor)
    times = alternate(group, timings, num_rounds)
    results = {(t.provider, t.entry): percentiles(values) for t, values in zip(timings, times, strict=True)}
    floors = {entry: values["p50_us"] for (provider, entry), values in results.items() if provider == "floor"}
    common = {
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": num_bytes,
        "num_ranks": group.size,
        "floor_us": min(floors.values()),
    }
    return [{"provider": p, "entry": e, **common, **values} for (p, e), values in results.items()]


def alternate(group: Collectives, timings: list[Timing], num_rounds: int) -> list[list[float]]:
    """Return the microseconds of every call of each timing, from blocks that take turns; every rank calls it."""
    times: list[list[float]] = [[] for _ in timings]
    counts = [_rounds_per_block(group, timing) for timing in timings]
    for number in range(num_rounds):
        # The order rotates, so that no provider always runs after the same one.
        for step in range(len(timings)):
            index = (number + step) % len(timings)
            group.barrier()
            block = timings[index].run(counts[index])
            times[index] += block[int(len(block) * _WARM_UP) :]
    return times


def _timings(group: Collectives, dtype: torch.dtype, num_bytes: int, floor: Floor) -> list[Timing]:
    num_elements = num_bytes // dtype.itemsize
    tensor = aligned_zeros(num_bytes).view(dtype)[:num_elements]
    timings = [
        Timing(provider="floor", entry="plain", run=lambda n: floor.run(n, streaming=False)),
        Timing(provider="floor", entry="streaming", run=lambda n: floor.run(n, streaming=True)),
        Timing(provider="gloo", entry="python", run=lambda n: time_calls(lambda: dist.all_reduce(tensor), n)),
    ]
    if isinstance(group, ShmCollectives):
        timings += [
            Timing(provider="shm", entry="native", run=lambda n: _time_native(group, tensor, n)),
            Timing(provider="shm", entry="python", run=lambda n: time_calls(lambda: group.all_reduce(tensor), n)),
        ]
    return timings


def _time_native(group: ShmCollectives, tensor: torch.Tensor, num_rounds: int) -> list[float]:
    times = (ctypes.c_double * num_rounds)()
    code = native.core_library().corebound_bench_all_reduce(
        ctypes.c_int64(group.handle),
        ctypes.c_void_p(tensor.data_ptr()),
        ctypes.c_int64(tensor.numel()),
        shm_ops.SUM_CODES[tensor.dtype],
        ctypes.c_int64(num_rounds),
        times,
    )
    if code:
        raise shm_ops.failure(code)
    return list(times)


def time_calls(call: Callable[[], object], num_rounds: int) -> list[float]:
    """Return the microseconds of each of some calls."""
    clock = time.perf_counter_ns
    times = []
    for _ in range(num_rounds):
        start = clock()
        call()
        times.append((clock() - start) / 1000)
    return times


def _rounds_per_block(group: Collectives, timing: Timing) -> int:
    """Return how many rounds fill a block; rank 0's figure, so that all ranks do as many."""
    timing.run(5)
    each_s = statistics.median(timing.run(10)) / 1e6
    return int(group.broadcast_object(max(10, min(2000, round(_BLOCK_S / each_s)))))


def _reserve(path: Path, num_bytes: int) -> tuple[BinaryIO, str]:
    """Return a new file of that size, locked while it has a name, and what failed: nothing, or why it has no memory."""
    file = path.open("xb+")
    fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        # A mapping of a file that cannot be backed kills the process on first touch.
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM, errno.EDQUOT):
            file.close()
            raise
        return file, too_small(path.parent, f"{num_bytes / MIB:.1f} MiB are needed", str(error))
    return file, ""


def aligned_zeros(num_bytes: int) -> torch.Tensor:
    """Return zero bytes in whole cache lines, at least `num_bytes`. Shapes: result [bytes] uint8."""
    # torch aligns to 64 bytes; whole cache lines keep neighbours out of the payload.
    return torch.zeros(-(-num_bytes // _CACHE_LINE_BYTES) * _CACHE_LINE_BYTES, dtype=torch.uint8)


def main() -> int:
    """Measure what the request asks for; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--request", type=json.loads, required=True)
    request = parser.parse_args().request
    return run_rank(lambda group: _answer(request, group), lambda: _enter_fake_host(request["fake_hosts"]))


def _enter_fake_host(places: list[str]) -> None:
    """See only the shared memory of the own one of these directories; it has to be before torch starts threads."""
    place = env.rank_environment()
    if place is not None and places:
        fake_hosts.enter(Path(places[place.rank * len(places) // place.world_size]))


def _answer(request: dict[str, Any], group: Collectives) -> None:
    place = env.rank_environment()
    if place is None or group.size == 1:
        raise CommError("bench allreduce needs two ranks or more", hint="--num-ranks 2")
    torch.set_num_threads(1)
    dtype, num_rounds = DTYPES[request["dtype"]], request["rounds"]
    if isinstance(group, HierarchicalCollectives):
        rows, details = _measure_hosts(request, group, place.job_id)
    else:
        details = group.details if isinstance(group, ShmCollectives) else {}
        rows = [row for size in request["bytes"] for row in measure(group, dtype, size, num_rounds, place.job_id)]
    if group.rank == 0:
        sys.stdout.write(json.dumps({"rows": rows, group.name: details}))
        sys.stdout.flush()
    group.barrier()


def _measure_hosts(
    request: dict[str, Any], group: HierarchicalCollectives, job_id: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    found, made = bench_hosts.contenders(group, job_id, env.settings().comm_timeout_s)
    with ExitStack() as stack:
        for other in made:
            stack.enter_context(closing(other))
        rows = [
            row
            for size in request["bytes"]
            for row in bench_hosts.measure(group, found, DTYPES[request["dtype"]], size, request["rounds"])
        ]
        group.barrier()
    details = {
        "hosts": group.hosts,
        "host_link": group.carrier,
        "rules": [[str(limit), number] for limit, number in group.rules],
    }
    return rows, details


if __name__ == "__main__":
    leave(main())
