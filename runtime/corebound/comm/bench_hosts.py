"""The part of `corebound bench allreduce` for ranks on several hosts: flat and hierarchical sums, in alternation."""

from __future__ import annotations

import functools
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from corebound.comm import bench_rank, select
from corebound.comm.hierarchical import HierarchicalCollectives
from corebound.comm.host_link import OWNERS_FROM_BYTES
from corebound.comm.hosts import Hosts
from corebound.errors import CommError
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)

# Of struct tcp_info in linux/tcp.h: the payload that arrived, without what was sent twice.
_TCP_INFO_BYTES = 136
_BYTES_RECEIVED = struct.Struct("=128xQ")
_COUNTED_CALLS = 5
_SHOWN_IN_ORDER = (
    ("gloo", None),
    ("ccl", None),
    ("hierarchical", "gloo"),
    ("hierarchical", "ccl"),
    ("hierarchical", "tcp"),
)
# hierarchical before flat oneCCL, as where oneCCL carries it from the start: other orders were not tried long enough.
_MADE_IN_ORDER = _SHOWN_IN_ORDER[::-1]

Endpoint = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to sum over hosts. `host_link` is what carries hierarchical's data, None for the flat ones."""

    provider: str
    host_link: str | None
    call: Callable[[torch.Tensor], object]


def contenders(group: HierarchicalCollectives, job_id: str, timeout_s: float) -> tuple[list[Contender], list[Any]]:
    """Return flat gloo and oneCCL and hierarchical over both, as far as they work, and the groups made for that.

    Every rank calls it. What does not work is said once.
    """
    assert dist.group.WORLD is not None
    calls: dict[tuple[str, str | None], Callable[[torch.Tensor], object]] = {("gloo", None): dist.all_reduce}
    calls["hierarchical", group.carrier] = group.all_reduce
    made: list[Any] = []
    for provider, host_link in _MADE_IN_ORDER:
        if (provider, host_link) in calls:
            continue
        try:
            other = select.create(dist.group.WORLD, provider, timeout_s, job_id=job_id, host_link=host_link)
        except CommError as error:
            if group.rank == 0:
                _LOGGER.warning("not measured: %s", error.message)
            continue
        made.append(other)
        calls[provider, host_link] = other.all_reduce
    found = [
        Contender(provider=p, host_link=link, call=calls[p, link]) for p, link in _SHOWN_IN_ORDER if (p, link) in calls
    ]
    return found, made


def measure(
    group: HierarchicalCollectives, found: list[Contender], dtype: torch.dtype, num_bytes: int, num_rounds: int
) -> list[dict[str, Any]]:
    """Return one row per contender for one message size; every rank calls it."""
    tensor = bench_rank.aligned_zeros(num_bytes).view(dtype)[: num_bytes // dtype.itemsize]
    calls = [functools.partial(contender.call, tensor) for contender in found]
    timings = [
        bench_rank.Timing(
            provider=contender.provider, entry="python", run=functools.partial(bench_rank.time_calls, call)
        )
        for contender, call in zip(found, calls, strict=True)
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
            "provider": contender.provider,
            "host_link": contender.host_link,
            "entry": "python",
            **common,
            **result,
            "bytes_between_hosts": expected_bytes(group.hosts, contender, num_bytes),
            "network_bytes": crossing_bytes(group, call),
        }
        for contender, call, result in zip(found, calls, results, strict=True)
    ]


def expected_bytes(hosts: Hosts, contender: Contender, num_bytes: int) -> int | None:
    """Return how many bytes of one call should cross between hosts, without headers; None for oneCCL's own choice."""
    num_hosts = len(hosts)
    if contender.provider == "hierarchical":
        # With three hosts or more a slice is either sent to everyone or, from a size on, to its owner and back.
        everywhere = num_hosts == 2 or num_bytes < OWNERS_FROM_BYTES
        return num_bytes * (num_hosts * (num_hosts - 1) if everywhere else 2 * (num_hosts - 1))
    if contender.provider == "ccl":
        return None
    host_of = {place: number for number, members in enumerate(hosts) for place in members}
    size = len(host_of)
    links = sum(host_of[place] != host_of[(place + 1) % size] for place in range(size))
    return links * 2 * (size - 1) * num_bytes // size


def crossing_bytes(group: HierarchicalCollectives, call: Callable[[], object]) -> int:
    """Return how many bytes of one call arrive at a host from another, by the kernel's count of every connection."""
    call()
    group.barrier()
    before = tcp_received()
    group.barrier()  # nobody starts while another still counts
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
    # The barriers around the calls are the only other traffic.
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
