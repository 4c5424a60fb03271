"""Which provider a group uses, and why: one line in the log, and an error when the one asked for cannot work."""

from __future__ import annotations

import logging

import torch.distributed as dist

from corebound.comm.base import Collectives
from corebound.comm.gloo import GlooCollectives
from corebound.comm.single import SingleCollectives
from corebound.errors import CommError
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)
NOT_YET = ("hierarchical", "ccl")


def check_provider(provider: str) -> None:
    """Raise CommError for a provider that is planned but absent."""
    if provider in NOT_YET:
        raise CommError(
            f"COREBOUND_COMM={provider}: not in this release",
            hint="use auto: shared memory between ranks of one machine, gloo otherwise",
        )


def single(provider: str, rank: int = 0) -> SingleCollectives:
    """Return the collectives of a group of one, whatever provider was asked for."""
    check_provider(provider)
    _LOGGER.info("collectives: single (one rank)")
    return SingleCollectives(rank)


def create(group: dist.ProcessGroup, provider: str, timeout_s: float, *, owns_group: bool = False) -> Collectives:
    """Return the collectives of a torch process group, by the provider named or, for `auto`, the best that works.

    Every member calls it with the same arguments.

    Raises: CommError when the provider that was named cannot work, saying why.
    """
    check_provider(provider)
    if group.size() == 1:
        return single(provider, dist.get_process_group_ranks(group)[0])
    gloo = GlooCollectives(group, timeout_s, owns_group=owns_group)
    _log(gloo, "asked for" if provider == "gloo" else "default")
    return gloo


def _log(chosen: Collectives, reason: str) -> None:
    # One line a group, not one a rank.
    level = logging.INFO if chosen.rank == 0 else logging.DEBUG
    _LOGGER.log(level, "collectives: %s for ranks %s (%s)", chosen.name, ",".join(map(str, chosen.ranks)), reason)
