"""Where a rank really runs, asked of the kernel: not where it was meant to."""

from __future__ import annotations

import socket
from typing import Any

from corebound import kernels
from corebound.config.env import rank_environment
from corebound.topology import read_process_place


def place_of_this_rank(comm: str) -> dict[str, Any]:
    """Return the entry of this rank in the `ranks` list that commands print; `comm` names its provider.

    Units: peak_rss_bytes, the most memory that the process had resident so far.

    Raises: ConfigError for an environment of a rank that is not whole; KernelError as `kernels.active_isa`.
    """
    environment = rank_environment()
    place = read_process_place()
    return {
        "rank": environment.rank if environment else 0,
        "local_rank": environment.local_rank if environment else 0,
        "host": socket.gethostname(),
        "cpus": list(place.cpus),
        "memory_nodes": list(place.memory_nodes),
        "isa": kernels.active_isa(),
        "comm": comm,
        "peak_rss_bytes": place.peak_rss_bytes,
    }


def local_size() -> int:
    """Return how many ranks of this launch share this machine: 1 without a launch.

    Raises: ConfigError for an environment of a rank that is not whole.
    """
    environment = rank_environment()
    return environment.local_size if environment else 1
