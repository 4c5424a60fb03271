"""Which names of a plan mean the machine we are on, and what can be seen of a host from here."""

from __future__ import annotations

import socket
from functools import cache
from pathlib import Path

from corebound.launcher.plan import TopologyOf
from corebound.launcher.spec import LOCALHOST
from corebound.topology import Topology, read_topology


def is_this_machine(host: str) -> bool:
    """Return whether a host name of a plan means the machine we are on, without asking the network."""
    own = socket.gethostname()
    return host in (LOCALHOST, "127.0.0.1", "::1", own, own.partition(".")[0])


def topology_reader(root: Path | None = None) -> TopologyOf:
    """Return a reader for `plan` that sees this machine only, or takes every host to look like the tree `root`.

    It reads at most once, and only when it is asked.
    """

    @cache
    def seen() -> Topology:
        return read_topology() if root is None else read_topology(root)

    return lambda host: None if root is None and not is_this_machine(host) else seen()
