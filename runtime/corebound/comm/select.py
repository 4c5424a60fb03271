"""Which provider a group uses, and why: one line in the log, and an error when the one asked for cannot work."""

from __future__ import annotations

import logging

import torch.distributed as dist

from corebound.comm import hierarchical_setup, shm_handshake, shm_ops
from corebound.comm.base import Collectives
from corebound.comm.ccl import CclCollectives
from corebound.comm.gloo import GlooCollectives
from corebound.comm.hierarchical import HierarchicalCollectives
from corebound.comm.hosts import find_hosts
from corebound.comm.shm import ShmCollectives
from corebound.comm.shm_handshake import SegmentOptions, SharedMemoryUnavailableError
from corebound.comm.single import SingleCollectives
from corebound.errors import CommError, KernelError
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)


class _AloneOnItsHostError(SharedMemoryUnavailableError):
    """Nobody to share memory with, which is no fault: with one rank on each host, levels would gain nothing."""


def single(rank: int = 0) -> SingleCollectives:
    """Return the collectives of a group of one, whatever provider was asked for."""
    chosen = SingleCollectives(rank)
    _log(chosen, "one rank")
    return chosen


def create(
    group: dist.ProcessGroup,
    provider: str,
    timeout_s: float,
    *,
    job_id: str,
    owns_group: bool = False,
    options: SegmentOptions | None = None,
    host_link: str | None = None,
) -> Collectives:
    """Return the collectives of a torch process group, by the provider named or, for `auto`, the best that works.

    Every member calls it with the same arguments. `host_link` None takes COREBOUND_HOST_LINK.

    Raises: CommError when the provider that was named cannot work, saying why.
    """
    if group.size() == 1:
        return single(dist.get_process_group_ranks(group)[0])
    gloo = GlooCollectives(group, timeout_s, owns_group=owns_group)
    if provider == "gloo":
        _log(gloo, "asked for")
        return gloo
    if provider == "ccl":
        return _through_ccl(gloo, timeout_s)
    reason, hint, is_expected = _try_library(gloo), None, False
    if not reason:
        chosen: Collectives | None = None
        try:
            chosen = _connect(gloo, provider, job_id, timeout_s, options or SegmentOptions(), host_link)
        except SharedMemoryUnavailableError as error:
            reason, hint = error.message, error.hint
            is_expected = isinstance(error, _AloneOnItsHostError)
        if chosen:
            return chosen
    if provider != "auto":
        gloo.close()
        raise CommError(f"COREBOUND_COMM={provider}: {reason}", hint=hint or "auto falls back to gloo")
    _log(gloo, f"no shared memory: {reason}", level=logging.INFO if is_expected else logging.WARNING)
    return gloo


def _through_ccl(gloo: GlooCollectives, timeout_s: float) -> Collectives:
    try:
        chosen = CclCollectives(gloo, timeout_s)
    except CommError as error:
        gloo.close()
        # The class and the exit code stay: a member that stays away is a timeout.
        raise type(error)(f"COREBOUND_COMM=ccl: {error.message}", hint=error.hint or "auto needs no oneCCL") from error
    _log(chosen, "asked for")
    return chosen


def _connect(
    gloo: GlooCollectives,
    provider: str,
    job_id: str,
    timeout_s: float,
    options: SegmentOptions,
    host_link: str | None,
) -> Collectives:
    """Return the collectives through shared memory, on one host or several.

    Raises: SharedMemoryUnavailableError, on all members alike.
    """
    reason: SharedMemoryUnavailableError | None = None
    if provider != "hierarchical":
        try:
            shm = ShmCollectives(gloo, job_id, timeout_s, options)
        except SharedMemoryUnavailableError as error:
            if provider == "shm":
                raise
            reason = error
        else:
            _log(shm, f"every rank mapped every other's segment; {_rules_text(shm)}")
            return shm
    hosts, alike = find_hosts(gloo, job_id, options.directory)
    if reason and len(hosts) == gloo.size:
        raise _AloneOnItsHostError("every rank is on a host of its own", hint=reason.hint)
    if reason and len(hosts) == 1:
        raise reason
    group = hierarchical_setup.connect(
        gloo, hosts, alike=alike, job_id=job_id, timeout_s=timeout_s, options=options, host_link=host_link
    )
    members = "; ".join(",".join(str(gloo.ranks[place]) for place in host) for host in hosts)
    _log(group, f"{len(hosts)} hosts, ranks {members}; {_slices_text(group)}; {_carrier_text(group)}")
    return group


def _try_library(gloo: GlooCollectives) -> str:
    """Return why some rank has no native library, or nothing; all ranks agree on it."""
    error = ""
    try:
        shm_ops.load()
    except KernelError as missing:
        error = missing.message
    verdicts = shm_handshake.exchange(gloo, {"error": error})
    return next((f"rank {rank}: {v['error']}" for rank, v in zip(gloo.ranks, verdicts, strict=True) if v["error"]), "")


def _rules_text(shm: ShmCollectives) -> str:
    found = shm.details["rules"]
    kinds = [f"{rule['algorithm']} with {rule['store']} stores" for rule in found]
    # Neighbours with the same choice are one range; the last rule also serves everything above it.
    ends = [index for index in range(len(found)) if kinds[index : index + 1] != kinds[index + 1 : index + 2]]
    ranges = [f"{kinds[index]} up to {found[index]['max_bytes'] // 1024} KiB" for index in ends[:-1]]
    return f"{shm.details['variant']}; all-reduce {', '.join([*ranges, kinds[-1]])}{' above' if ranges else ''}"


def _slices_text(group: HierarchicalCollectives) -> str:
    rules = group.rules
    # Neighbours with the same number are one range.
    ends = [index for index in range(len(rules) - 1) if rules[index][1] != rules[index + 1][1]]
    ranges = [f"{rules[index][1]} up to {rules[index][0] / 1024:g} KiB" for index in ends]
    return f"slices between hosts: {', '.join([*ranges, str(rules[-1][1])])}{' above' if ranges else ''}"


def _carrier_text(group: HierarchicalCollectives) -> str:
    return f"between hosts {group.carrier} ({group.carrier_reason})"


def _log(chosen: Collectives, reason: str, *, level: int = logging.INFO) -> None:
    # One line a group, not one a rank.
    level = level if chosen.rank == 0 else logging.DEBUG
    _LOGGER.log(level, "collectives: %s for ranks %s (%s)", chosen.name, ",".join(map(str, chosen.ranks)), reason)
