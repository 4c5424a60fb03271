"""Cuts nodes off from everything but the lab, inside the nodes themselves, so that no packet has to be sent to show it."""

from __future__ import annotations

import json

from lab.layout import SUBNET
from lab.podman import Podman

TABLE = "inet corebound_airgap"
# Counted and dropped where it leaves the node. Links are not IPv4: a node has no other way out.
RULES = f"""
table {TABLE} {{
    counter refused {{ }}
    chain leaving {{
        type filter hook output priority 0; policy drop;
        oifname "lo" accept
        ip daddr {SUBNET} accept
        counter name refused
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


def num_refused(podman: Podman, name: str) -> int:
    """Returns how many packets to places outside the lab a node has tried to send since it was cut off."""
    listed = json.loads(podman.execute(name, "nft", "--json", "list", "counters", "table", *TABLE.split()))
    return next(int(entry["counter"]["packets"]) for entry in listed["nftables"] if "counter" in entry)
