"""`corebound topology`: what this machine is, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections import Counter
from typing import Any

import click

from corebound.cli.tables import count, format_bytes, render_table
from corebound.config import env
from corebound.errors import ConfigError
from corebound.topology import ProcessPlace, Topology, format_cpu_list, read_process_place, read_topology


@click.command()
@click.option(
    "--root",
    default="/",
    show_default=True,
    metavar="DIR",
    help="Read DIR/sys and DIR/proc in place of this machine's.",
)
@click.option("--process", is_flag=True, help="Show only where this process may run: its CPUs and memory policy.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: everything that is known, sizes in bytes.")
def topology(root: str, process: bool, as_json: bool) -> None:
    """Show CPUs, sockets, NUMA nodes, caches, memory and instruction sets, as this process may use them.

    \b
    Examples:
      corebound topology
      corebound topology --json | jq '.nodes[].cpus'
      taskset -c 0-7 corebound topology      what a process bound to 8 CPUs would see
      corebound topology --root /tmp/dump    a copied /sys and /proc of another machine
      corebound run --bind_cores_to_rank --no_python corebound topology --process    what each rank really got
    """  # noqa: D301 - click reads this backspace
    if process:
        if root != "/":
            raise ConfigError(
                f"--process and --root {root} cannot be used together: a copied tree has no process of ours"
            )
        # One line, written at once: the ranks of a launch all print.
        place = process_to_json(read_process_place())
        click.echo(json.dumps(place) if as_json else _process_line(place))
        return
    found = read_topology(root)
    if as_json:
        click.echo(json.dumps(to_json(found, root), indent=2))
        return
    click.echo(render(found))
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)


def to_json(found: Topology, root: str = "/") -> dict[str, Any]:
    """Return the whole topology as JSON types, with the derived cores and HBM pairs beside it."""
    hbm = {node.id: found.hbm_node_of(node.id) for node in found.cpu_nodes()}
    return {
        "root": root,
        **dataclasses.asdict(found),
        "cores": [dataclasses.asdict(core) for core in found.physical_cores()],
        "threads_per_core": found.threads_per_core,
        "best_isa": found.isa.best,
        "hbm_nodes": [{"node": node, "hbm_node": near} for node, near in hbm.items() if near is not None],
    }


def process_to_json(place: ProcessPlace) -> dict[str, Any]:
    """Return where this process may run as JSON types, with its place in a launch: rank None is none."""
    rank = env.rank_environment()
    environ = env.snapshot()
    threads = environ.get("OMP_NUM_THREADS", "")
    return {
        "host": platform.node(),
        "rank": rank.rank if rank else None,
        "local_rank": rank.local_rank if rank else None,
        **dataclasses.asdict(place),
        "num_threads": int(threads) if threads.isdecimal() else None,
    }


def _process_line(place: dict[str, Any]) -> str:
    who = "" if place["rank"] is None else f"rank {place['rank']} "
    policy = place["memory_policy"] + (f" ({place['policy_error']})" if place["policy_error"] else "")
    threads = "" if place["num_threads"] is None else f", {count(place['num_threads'], 'thread')}"
    return (
        f"{who}on {place['host']}: CPUs {format_cpu_list(place['cpus'])}{threads}, "
        f"memory policy {policy}, nodes {format_cpu_list(place['memory_nodes'])}"
    )


def render(found: Topology) -> str:
    """Return the text for a terminal: a summary, then nodes, caches and instruction sets."""
    return "\n\n".join([_summary(found), _nodes(found), *_caches(found), _isa(found)])


def _summary(found: Topology) -> str:
    allowed, cores = found.allowed_cpus, found.physical_cores()
    num_offline = len(found.cpus) - len(found.online_cpus)
    smt = "no SMT" if found.threads_per_core == 1 else f"{found.threads_per_core} CPUs a core"
    facts = {
        "machine": found.isa.brand or "unknown processor",
        "sockets": f"{len(found.sockets)}, with {count(len(found.all_cores()), 'core')}, {smt}",
        "CPUs": f"{len(found.online_cpus)} online" + (f", {num_offline} offline" if num_offline else ""),
        "allowed": f"{count(len(allowed), 'CPU')} on {count(len(cores), 'core')}: {format_cpu_list(allowed)}",
        "memory": _memory(found),
        "/dev/shm": _shm(found),  # noqa: S108
        "cgroup": _cgroup(found),
    }
    return "\n".join(f"{name:<9} {value}" for name, value in facts.items())


def _memory(found: Topology) -> str:
    memory = found.memory
    if not memory.total_bytes:
        return "unknown"
    parts = [format_bytes(memory.total_bytes), f"{format_bytes(memory.available_bytes)} available"]
    if memory.limit_bytes is not None:
        parts.append(f"limited to {format_bytes(memory.limit_bytes)}")
    for pool in memory.huge_pages:
        if pool.num_total:
            parts.append(f"{pool.num_free} of {pool.num_total} huge pages of {format_bytes(pool.page_bytes)} free")
    if memory.transparent_huge_pages:
        parts.append(f"transparent huge pages: {memory.transparent_huge_pages}")
    return ", ".join(parts)


def _shm(found: Topology) -> str:
    if found.memory.shm_total_bytes is None:
        return "size unknown"
    free = found.memory.shm_free_bytes
    return format_bytes(found.memory.shm_total_bytes) + ("" if free is None else f", {format_bytes(free)} free")


def _cgroup(found: Topology) -> str:
    cgroup = found.cgroup
    if cgroup.version == "none":
        return "none seen"
    parts: list[str] = [cgroup.version]
    if cgroup.cpus is not None:
        parts.append(f"CPUs {format_cpu_list(cgroup.cpus)}")
    if cgroup.memory_nodes is not None:
        parts.append(f"memory nodes {format_cpu_list(cgroup.memory_nodes)}")
    if cgroup.cpu_quota is not None:
        parts.append(f"quota {cgroup.cpu_quota:g} CPUs")
    return ", ".join(parts)


def _nodes(found: Topology) -> str:
    allowed = set(found.allowed_cpus)
    cores = Counter(core.node for core in found.physical_cores())
    rows = []
    for node in found.nodes:
        sockets = sorted({found.cpu(cpu).socket for cpu in node.cpus})
        near = found.hbm_node_of(node.id) if node.cpus else None
        kind = node.kind if near is None else f"{node.kind}, HBM is node {near}"
        if node.memory_side_cache_bytes:
            kind = f"{kind}, {format_bytes(node.memory_side_cache_bytes)} HBM cache"
        rows.append(
            [
                node.id,
                format_cpu_list(sockets) or "-",
                kind if node.allowed else f"{kind}, memory not allowed",
                format_bytes(node.memory_bytes if found.memory.total_bytes else None),
                format_bytes(node.free_bytes if found.memory.total_bytes else None),
                cores.get(node.id, 0),
                format_cpu_list(allowed.intersection(node.cpus)) or "-",
                " ".join(str(node.distances.get(other.id, "?")) for other in found.nodes),
            ]
        )
    header = ["node", "socket", "kind", "memory", "free", "allowed cores", "allowed CPUs", "distances"]
    return render_table(header, rows)


def _caches(found: Topology) -> list[str]:
    groups = Counter((c.level, c.kind, c.size_bytes, len(c.cpus)) for c in found.caches)
    if not groups:
        return []
    rows = [
        [f"L{level} {kind}", format_bytes(size), num_caches, num_cpus]
        for (level, kind, size, num_cpus), num_caches in sorted(groups.items())
    ]
    return [render_table(["cache", "size each", "number", "CPUs each"], rows)]


def _isa(found: Topology) -> str:
    rows = []
    for variant in found.isa.variants:
        note = "" if variant.supported else f"missing {', '.join(variant.missing)}"
        if variant.supported and variant.name == "amx":
            note = "used by oneDNN inside torch"
        elif variant.name == found.isa.best:
            note = f"best (from {found.isa.source})"
        rows.append([variant.name, "yes" if variant.supported else "no", note])
    return render_table(["instruction sets", "runs", "note"], rows, max_width=100)
