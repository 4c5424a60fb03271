"""What the lab needs of the machine it runs on, and puts back when it goes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.layout import GATEWAY, SUBNET, LabError, Layout

# Debian's package -> a program or file by which it is known to be there.
PACKAGES = {
    "podman": "podman",
    "runc": "runc",
    "netavark": "/usr/lib/podman/netavark",
    "iptables": "iptables",
    "nftables": "nft",
    "iproute2": "ip",
    "openssh-client": "ssh",
    "mmdebstrap": "mmdebstrap",
}
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
# Loses against every other route, so it counts only when the bridge is gone.
GUARD_METRIC = "4000000000"


def run(*words: str | Path, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Returns what a command came to; raises with its own words when it fails."""
    command = [str(word) for word in words]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr.strip()}")
    return done


def missing_packages() -> list[str]:
    """Returns the packages that the lab needs and this machine lacks."""
    return [name for name, sign in PACKAGES.items() if not (Path(sign).exists() or shutil.which(sign))]


def capable() -> bool:
    """Returns whether this process may make bridges and mounts; root of a container may not."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return all(effective >> number & 1 for number in (CAP_NET_ADMIN, CAP_SYS_ADMIN))


def why_not() -> str:
    """Returns why no lab can be put up on this machine; empty when nothing speaks against it."""
    if os.geteuid() != 0:
        return "this machine lacks a root user here: the lab makes a bridge and routes"
    if not capable():
        return "this machine lacks CAP_NET_ADMIN or CAP_SYS_ADMIN for the lab: it is a container without privileges"
    if missing_packages() and shutil.which("apt-get") is None:
        return f"this machine lacks {', '.join(missing_packages())}, and apt-get to install them"
    return ""


def install_packages() -> None:
    """Installs what is missing with apt-get."""
    packages = missing_packages()
    reason = why_not()
    apt = "apt-get install -y --no-install-recommends"
    if reason:
        command = f"{apt} {' '.join(packages)} && make lab-up" if packages else "make lab-up"
        raise LabError(reason, hint=f"run as root: {command}")
    if not packages:
        return
    options = ["-q", "-o", "DPkg::Lock::Timeout=300"]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", *options, *step],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            hint = f"run as root: apt-get update && {apt} {' '.join(packages)}"
            raise LabError(f"apt-get {step[0]} failed:\n{done.stderr.strip()}", hint=hint)


def guard_subnet() -> None:
    """Keeps packets for the lab's addresses on this machine, whether or not its bridge is there."""
    run("ip", "route", "replace", "unreachable", SUBNET, "metric", GUARD_METRIC)


def remember(layout: Layout) -> None:
    """Writes down what putting up the lab will change; what an earlier lab left is not the machine's own state."""
    if not layout.machine_state.exists():
        state = {"ip_forward": FORWARDING.read_text(encoding="utf-8").strip(), "chains": firewall_chains()}
        layout.machine_state.write_text(json.dumps(state) + "\n", encoding="utf-8")


def firewall_chains() -> list[list[str]]:
    """Returns table and name of every chain that podman's network program made."""
    chains: list[list[str]] = []
    for table in ("filter", "nat"):
        listed = run("iptables", "-t", table, "-S", check=False).stdout.splitlines()
        chains += [[table, line.split()[1]] for line in listed if line.startswith("-N NETAVARK")]
    return chains


def remove_chains(keep: Sequence[list[str]]) -> None:
    """Removes the chains that podman's network program left behind, except those that were there before."""
    chains = [chain for chain in firewall_chains() if chain not in keep]
    for table in {table for table, _ in chains}:
        names = {name for owner, name in chains if owner == table}
        for line in run("iptables", "-t", table, "-S").stdout.splitlines():
            words = shlex.split(line)
            if words[0] == "-A" and words[1] not in names and names & set(words[2:]):
                run("iptables", "-t", table, "-D", *words[1:], check=False)
    for command in ("-F", "-X"):
        for table, name in chains:
            run("iptables", "-t", table, command, name, check=False)


def remove_bridge() -> None:
    """Removes the bridge with the lab's address and its ends of the nodes' links, if podman did not."""
    lines = run("ip", "-o", "-4", "address", "show").stdout.splitlines()
    for name in {line.split()[1] for line in lines if f" {GATEWAY}/" in line}:
        ports = run("ip", "-o", "link", "show", "master", name).stdout.splitlines()
        for port in (line.split()[1].rstrip(":").split("@")[0] for line in ports):
            run("ip", "link", "delete", port, check=False)
        run("ip", "link", "delete", name)


def restore(layout: Layout) -> None:
    """Puts the machine's own network state back and lifts the guard; comes last, when no node is left."""
    remove_bridge()
    # Another lab's bridge, or somebody else's, still needs forwarding and chains; the last lab puts them back.
    if layout.machine_state.exists() and not run("ip", "-o", "link", "show", "type", "bridge").stdout:
        state = json.loads(layout.machine_state.read_text(encoding="utf-8"))
        remove_chains(state["chains"])
        FORWARDING.write_text(state["ip_forward"], encoding="utf-8")
        layout.machine_state.unlink()
    run("ip", "route", "delete", "unreachable", SUBNET, "metric", GUARD_METRIC, check=False)
