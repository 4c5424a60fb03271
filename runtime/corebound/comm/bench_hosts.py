"""The part of `corebound bench allreduce` for ranks on several hosts: hierarchical beside flat gloo, in alternation."""

from __future__ import annotations

import functools
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from corebound.comm import bench_rank
from corebound.comm.hierarchical import HierarchicalCollectives

# Of struct tcp_info in linux/tcp.h: the payload that arrived, without what was sent twice.
_TCP_INFO_BYTES = 136
_BYTES_RECEIVED = struct.Struct("=128xQ")
_COUNTED_CALLS = 5

Endpoint = tuple[str, int]


def measure(
    group: HierarchicalCollectives, dtype: torch.dtype, num_bytes: int, num_rounds: int
) -> list[dict[str, Any]]:
    """Return one row per provider for one message size; every rank calls it."""
    tensor = bench_rank.aligned_zeros(num_bytes).view(dtype)[: num_bytes // dtype.itemsize]
    calls: dict[str, Callable[[], object]] = {
        "gloo": lambda: dist.all_reduce(tensor),
        "hierarchical": lambda: group.all_reduce(tensor),
    }
    timings = [
        bench_rank.Timing(provider=name, entry="python", run=functools.partial(bench_rank.time_calls, call))
        for name, call in calls.items()
    ]
    times = bench_rank.alternate(group, timings, num_rounds)
    results = [bench_rank.percentiles(values) for values in times]
    common = {
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": num_bytes,
        "num_ranks": group.size,
        "num_hosts": len(group.hosts),
        "gloo_us": results[0]["p50_us"],
    }
    return [
        {
            "provider": timing.provider,
            "entry": timing.entry,
            **common,
            **result,
            "network_bytes": crossing_bytes(group, calls[timing.provider]),
        }
        for timing, result in zip(timings, results, strict=True)
    ]


def crossing_bytes(group: HierarchicalCollectives, call: Callable[[], object]) -> int:
    """Return how many bytes of one call arrive at a host from another, by the kernel's count of every connection."""
    call()
    group.barrier()
    before = tcp_received()
    for _ in range(_COUNTED_CALLS):
        call()
    group.barrier()
    after = tcp_received()
    hosts: dict[Endpoint, int] = {}
    for place in range(group.size):
        own = [local for local, _ in after]
        for address, port in group.broadcast_object(own if place == group.rank else None, place):
            hosts[address, port] = next(number for number, host in enumerate(group.hosts) if place in host)
    num_bytes = sum(after[pair] - before.get(pair, 0) for pair in after if hosts.get(pair[1], group.host) != group.host)
    total = group.all_gather(torch.tensor([num_bytes], dtype=torch.int64)).sum()
    # The barrier after the calls is the only other traffic.
    return round(int(total) / _COUNTED_CALLS)


def tcp_received() -> dict[tuple[Endpoint, Endpoint], int]:
    """Return how many bytes arrived on each TCP connection of this process, by own and other end."""
    received = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            copy = os.dup(int(entry.name))
        except OSError:
            continue  # closed since it was listed
        with socket.socket(fileno=copy) as connection:
            if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            try:
                ends = (_endpoint(connection.getsockname()), _endpoint(connection.getpeername()))
            except OSError:
                continue  # it listens
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            received[ends] = int(_BYTES_RECEIVED.unpack(info)[0])
    return received


def _endpoint(name: tuple[Any, ...]) -> Endpoint:
    return str(name[0]).removeprefix("::ffff:"), int(name[1])
