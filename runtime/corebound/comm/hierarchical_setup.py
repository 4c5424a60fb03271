"""Makes the groups of the hierarchical provider: one per host, one per slice between hosts; finds its thresholds."""

from __future__ import annotations

import math
import secrets
import statistics
import time
from collections.abc import Sequence

import torch
from torch._C._distributed_c10d import ProcessGroupGloo
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from corebound.comm import carrier, shm_handshake, shm_ops
from corebound.comm.base import as_timedelta, from_torch_error
from corebound.comm.carrier import Carrier
from corebound.comm.faults import FaultBoard
from corebound.comm.gloo import GlooCollectives
from corebound.comm.hierarchical import HierarchicalCollectives, Levels
from corebound.comm.host_link import HostLink
from corebound.comm.hosts import Hosts
from corebound.comm.quiet import gloo_greeting_on_stderr
from corebound.comm.shm import ShmCollectives
from corebound.comm.shm_handshake import SegmentOptions, SharedMemoryUnavailableError

_PROBE_BYTES = (8 << 10, 64 << 10, 512 << 10)
# Above, the sums and the copies into the network's buffers are worth more than one core, wherever it was measured.
_ALWAYS_SLICED_BYTES = 768 << 10
# Where ranks share processors a call may take three times as long as the next: the median of a few says little. And
# who is ahead after a call depends on the number of slices: calls with the same follow each other, as later on.
_PROBE_BLOCKS = 2
_PROBE_ROUNDS = 8
_PROBE_BUDGET_S = 0.25
# What is not expected has to win clearly. gloo's threads and oneCCL's polls take processors from the ranks beside them,
# so the fewer of them the better; our sockets do not, and one rank alone has the whole data to send and to add.
_CLEAR_GAIN = 0.85


def connect(
    gloo: GlooCollectives,
    hosts: Hosts,
    *,
    alike: bool,
    job_id: str,
    timeout_s: float,
    options: SegmentOptions,
    host_link: str | None = None,
) -> HierarchicalCollectives:
    """Return the collectives of members on several hosts. Every member calls it. `host_link` is as in carrier.connect.

    Raises: SharedMemoryUnavailableError, on all members alike, when some host's ranks cannot share memory.
    """
    shm_ops.load()
    store = PrefixStore(f"corebound/hierarchical/{gloo.broadcast_object(secrets.token_hex(8))}", _get_default_store())
    host = next(number for number, members in enumerate(hosts) if gloo.rank in members)
    cards = shm_handshake.exchange(gloo, {})
    local = _connect_host(gloo, hosts[host], PrefixStore(f"host{host}", store), job_id, timeout_s, options)
    local_rank = hosts[host].index(gloo.rank)
    names = host_names(hosts, [card["host"] for card in cards])
    name_of = {gloo.ranks[place]: name for name, members in zip(names, hosts, strict=True) for place in members}
    link, chosen = None, Carrier("none", "one host", None)
    if len(hosts) > 1:
        has_link = local_rank < min(map(len, hosts))
        peers = [gloo.ranks[members[local_rank]] for members in hosts] if has_link else []
        link_store = PrefixStore(f"slice{local_rank}", store) if has_link else None
        peer_names = [f"rank {rank} (host {name_of[rank]})" for rank in peers]
        chosen = carrier.connect(gloo, link_store, host, peer_names, timeout_s, host_link)
        if chosen.transport:
            link = HostLink(chosen.transport, host, len(hosts), alike=alike)
    board = FaultBoard(PrefixStore("faults", store), name_of)
    levels = Levels(
        hosts=hosts, names=names, local=local, link=link, board=board, carrier=chosen.name, reason=chosen.reason
    )
    group = HierarchicalCollectives(gloo, levels, timeout_s)
    group.rules = probe(group, _PROBE_BUDGET_S)
    return group


def host_names(hosts: Hosts, hostnames: Sequence[str]) -> tuple[str, ...]:
    """Return what to call each host: its own name, or its number where two have the same. `hostnames` is by member."""
    names = tuple(hostnames[members[0]] for members in hosts)
    return names if len(set(names)) == len(names) else tuple(map(str, range(len(hosts))))


def probe(group: HierarchicalCollectives, budget_s: float) -> list[tuple[float, int]]:
    """Return up to which size how many slices are fastest here: one rank of a host on the network, or several.

    Every member calls it; member 0 measures and decides. What the budget leaves out, and what is longer, goes in
    as many slices as there can be.
    """
    candidates = (1, group.max_slices)
    expected, other = reversed(candidates) if group.carrier == "tcp" else candidates
    if group.max_slices == 1 or len(group.hosts) == 1:
        return [(math.inf, group.max_slices)]
    start_s = time.monotonic()
    rules: list[tuple[float, int]] = []
    for num_bytes in _PROBE_BYTES:
        if not group.broadcast_object(time.monotonic() - start_s < budget_s):
            break
        data = torch.zeros(num_bytes // 2, dtype=torch.bfloat16)
        times_s: dict[int, list[float]] = {num_slices: [] for num_slices in candidates}
        for num_slices in candidates * _PROBE_BLOCKS:
            group.rules = [(math.inf, num_slices)]
            for number in range(_PROBE_ROUNDS + 1):
                begin_s = time.perf_counter()
                group.all_reduce(data)
                if number > 0:  # the first warms caches, and waits for those who are still in what came before
                    times_s[num_slices].append(time.perf_counter() - begin_s)
        wins = statistics.median(times_s[other]) < statistics.median(times_s[expected]) * _CLEAR_GAIN
        # Each rule reaches halfway, by ratio, to the next probed size.
        rules.append((num_bytes * 2.0, other if wins else expected))
    if len(rules) == len(_PROBE_BYTES):
        rules[-1] = (_ALWAYS_SLICED_BYTES, rules[-1][1])
    agreed = group.broadcast_object(rules)
    return [*((float(limit), int(number)) for limit, number in agreed), (math.inf, group.max_slices)]


def _connect_host(
    gloo: GlooCollectives,
    members: tuple[int, ...],
    store: Store,
    job_id: str,
    timeout_s: float,
    options: SegmentOptions,
) -> ShmCollectives | None:
    """Return the shared-memory group of the own host, or None for its only member."""
    local, error, hint = None, "", None
    if len(members) > 1:
        ranks = [gloo.ranks[place] for place in members]
        try:
            with gloo_greeting_on_stderr():
                backend = ProcessGroupGloo(store, members.index(gloo.rank), len(members), as_timedelta(timeout_s))
        except (RuntimeError, ValueError) as failure:
            raise from_torch_error(failure, operation="connecting the host's ranks", rank=gloo.rank) from failure
        own = GlooCollectives(backend, timeout_s, ranks=ranks)
        del backend
        try:
            local = ShmCollectives(own, job_id, timeout_s, options)
        except SharedMemoryUnavailableError as failure:
            error, hint = failure.message, failure.hint
            own.close()
    # A host that cannot share memory would leave the others waiting for it.
    verdicts = shm_handshake.exchange(gloo, {"error": error, "hint": hint})
    if local and any(verdict["error"] for verdict in verdicts):
        local.close()
    for verdict in verdicts:
        if verdict["error"]:
            raise SharedMemoryUnavailableError(verdict["error"], hint=verdict["hint"])
    return local
