"""Cuts nodes off from everything but the lab, inside the nodes themselves: showing that it holds sends no packet."""

from __future__ import annotations

import json

from lab.layout import SUBNET
from lab.podman import Podman

TABLE = "inet corebound_airgap"
# Counted and dropped where it leaves the node. Among the others are lookups of names and what IPv6 says to its link.
RULES = f"""
table {TABLE} {{
    counter connections {{ }}
    counter others {{ }}
    chain leaving {{
        type filter hook output priority 0; policy drop;
        oifname "lo" accept
        ip daddr {SUBNET} accept
        meta l4proto tcp counter name connections drop
        counter name others
    }}
    chain arriving {{
        type filter hook input priority 0; policy drop;
        iifname "lo" accept
        ip saddr {SUBNET} accept
    }}
}}
"""


def cut_off(podman: Podman, name: str) -> None:
    """Lets a node reach the lab's addresses only, as long as it runs."""
    podman.execute(name, "sh", "-c", f"nft list table {TABLE} >/dev/null 2>&1 || nft -f - <<'EOF'\n{RULES}\nEOF")


def num_refused(podman: Podman, name: str, counter: str = "connections") -> int:
    """Returns how many packets of TCP (or of `others`) to places outside the lab a node has tried to send."""
    listed = json.loads(podman.execute(name, "nft", "--json", "list", "counter", *TABLE.split(), counter))
    return next(int(entry["counter"]["packets"]) for entry in listed["nftables"] if "counter" in entry)
