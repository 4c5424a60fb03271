"""What a Slurm allocation says of its nodes: their names, and how many tasks each has places for."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Mapping, Sequence

from corebound.errors import ConfigError, HostError
from corebound.launcher.hostfile import Host

_TIMEOUT_S = 20.0
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def allocated_hosts(environ: Mapping[str, str]) -> tuple[Host, ...]:
    """Return the nodes of the allocation that we are in, with a slot for each of its tasks.

    Raises: ConfigError outside of an allocation, or when what it says makes no sense.
    """
    listed = environ.get("SLURM_JOB_NODELIST")
    if not listed:
        raise ConfigError(
            "--launcher slurm: no hostfile was given, and this is no Slurm allocation (SLURM_JOB_NODELIST is not set)",
            hint="start inside salloc or sbatch, which say which nodes there are, or name them with --hostfile",
        )
    names = expand(listed, environ)
    text = environ.get("SLURM_TASKS_PER_NODE", "")
    slots = tasks_per_node(text)
    if len(slots) != len(names):
        raise ConfigError(
            f"SLURM_TASKS_PER_NODE: expected counts for {len(names)} nodes ({listed}), found {text!r}",
            hint="name hosts and slots with --hostfile",
        )
    return tuple(Host(name, count) for name, count in zip(names, slots, strict=True))


def node_names(hosts: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return Slurm's name of each host: its own, or that of the node of the allocation with the same address.

    Outside of an allocation names stay as they are: srun makes one. Raises: ConfigError for a host that is no node.
    """
    listed = environ.get("SLURM_JOB_NODELIST")
    if not listed:
        return list(hosts)
    nodes = expand(listed, environ)
    if set(hosts) <= set(nodes):
        return list(hosts)
    by_address = {address: node for node in nodes for address in _addresses(node)}
    return [host if host in nodes else _node_at(host, by_address, nodes) for host in hosts]


def expand(listed: str, environ: Mapping[str, str]) -> list[str]:
    """Return the names in a list of Slurm's, such as `node[1-3,7]`; scontrol knows how they are written.

    Raises: HostError when scontrol is missing or refuses.
    """
    command = ("scontrol", "show", "hostnames", listed)
    try:
        done = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except subprocess.CalledProcessError as error:
        raise HostError(f"{' '.join(command)}: exit code {error.returncode}: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{' '.join(command)}: {error}", hint="install Slurm's client programs here") from error
    return done.stdout.split()


def tasks_per_node(text: str) -> list[int]:
    """Return the numbers in Slurm's short form, none if it is not of that form: `2(x3),1` are 2, 2, 2 and 1."""
    counts: list[int] = []
    for word in text.split(","):
        match = _TASKS.fullmatch(word)
        if match is None:
            return []
        counts.extend([int(match[1])] * int(match[2] or 1))
    return counts


def _node_at(host: str, by_address: Mapping[str, str], nodes: Sequence[str]) -> str:
    found = next((by_address[address] for address in _addresses(host) if address in by_address), None)
    if found is None:
        raise ConfigError(
            f"host {host} is not a node of the Slurm allocation, which has {', '.join(nodes)}",
            hint="name nodes of the allocation in the hostfile, or leave out --hostfile to use all of them",
        )
    return found


def _addresses(name: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
    except OSError:
        return set()
