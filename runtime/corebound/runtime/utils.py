"""Memory snapshots, under the name that scripts written for DeepSpeed have for them."""

from __future__ import annotations

from corebound.comm.rank_log import set_up_log_of_script
from corebound.config.env import rank_environment
from corebound.logs import get_logger
from corebound.topology import read_process_place, read_topology

_log = get_logger(__name__)
_GIB = 1 << 30


def see_memory_usage(message: str, force: bool = False) -> None:
    """Log the most memory that this process has had, and what is free for it, on rank 0; without `force` do nothing.

    Raises: ConfigError for an environment of a rank that is not whole; HostError as `read_topology`.
    """
    place = rank_environment()
    if not force or (place is not None and place.rank != 0):
        return
    set_up_log_of_script()
    peak, free = read_process_place().peak_rss_bytes, read_topology().memory.available_bytes
    _log.info("%s: peak %.2f GiB, %.2f GiB free", message, peak / _GIB, free / _GIB)
