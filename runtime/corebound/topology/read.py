"""Reads the whole topology: the only function of the package that looks at a machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from corebound.errors import HostError, KernelError
from corebound.topology.cgroups import read_cgroup
from corebound.topology.cpulist import format_cpu_list, parse_cpu_list
from corebound.topology.cpus import read_caches, read_cpuinfo, read_cpus
from corebound.topology.isa import IsaReport, assess_isa
from corebound.topology.memory import read_memory
from corebound.topology.model import CgroupLimits, Cpu, Topology
from corebound.topology.native_report import native_isa_report
from corebound.topology.nodes import assign_nodes, read_nodes
from corebound.topology.tree import Tree


def read_topology(root: str | Path = "/", affinity: Iterable[int] | None = None) -> Topology:
    """Return the machine below `root` as this process, or the one that `affinity` describes, may use it.

    `affinity` is by default the process's own for root `/`, else that of `proc/self/status` below the root. It is cut
    to the cpuset and to the CPUs that are online. Nothing is written and no other program is started.

    Raises: HostError when `root` is no directory or holds neither sys nor proc, when a file in it is malformed, or when
        none of the CPUs of `affinity` exists.
    """
    tree = Tree(root)
    if not tree.root.is_dir():
        raise HostError(
            f"topology root {tree.root}: no such directory", hint="--root names a directory with sys/ and proc/"
        )
    if not tree.is_live and not (tree.is_dir("sys") or tree.is_dir("proc")):
        raise HostError(
            f"topology root {tree.root}: neither sys nor proc is in it",
            hint="--root names a directory with sys/ and proc/",
        )
    warnings: list[str] = []
    wanted = _affinity(tree) if affinity is None else tuple(sorted(set(affinity)))
    cgroup = read_cgroup(tree)
    cpus = read_cpus(tree, wanted, warnings)
    nodes = read_nodes(tree, cpus, cgroup, warnings)
    cpus = assign_nodes(cpus, nodes)
    isa = _read_isa(tree)
    return Topology(
        allowed_cpus=_allowed(cpus, wanted, cgroup, warnings),
        cpus=cpus,
        nodes=nodes,
        sockets=tuple(sorted({cpu.socket for cpu in cpus if cpu.online})),
        caches=read_caches(tree, cpus),
        isa=isa,
        memory=read_memory(tree, cgroup),
        warnings=(*warnings, *isa.warnings),
        cgroup=cgroup,
        has_numa=tree.is_dir("sys/devices/system/node/node0") or len(nodes) > 1 or nodes[0].id != 0,
    )


def _affinity(tree: Tree) -> tuple[int, ...] | None:
    if tree.is_live:
        return tuple(sorted(os.sched_getaffinity(0)))
    match = re.search(r"^Cpus_allowed_list:\s*(\S*)$", tree.text("proc/self/status") or "", re.MULTILINE)
    if match is None:
        return None
    try:
        return parse_cpu_list(match[1])
    except ValueError as error:
        raise HostError(f"{tree.root / 'proc/self/status'}: Cpus_allowed_list: {error}") from error


def _allowed(
    cpus: tuple[Cpu, ...], wanted: tuple[int, ...] | None, cgroup: CgroupLimits, warnings: list[str]
) -> tuple[int, ...]:
    online = {cpu.id for cpu in cpus if cpu.online}
    allowed = online if wanted is None else online.intersection(wanted)
    if not allowed:
        raise HostError(
            f"no usable CPU: affinity {format_cpu_list(wanted or ())}, online {format_cpu_list(online)}",
            hint="check the affinity mask (taskset -p) and the container's CPU set",
        )
    if cgroup.cpus is not None:
        if not allowed.intersection(cgroup.cpus):
            warnings.append(
                f"cpuset {format_cpu_list(cgroup.cpus)} and affinity {format_cpu_list(allowed)} have no CPU in common; "
                "the affinity is taken"
            )
        else:
            allowed = allowed.intersection(cgroup.cpus)
    return tuple(sorted(allowed))


def _read_isa(tree: Tree) -> IsaReport:
    cpuinfo = read_cpuinfo(tree)
    if not tree.is_live:
        # The native library would report this machine, not the one below the root.
        return assess_isa(None, cpuinfo.flags, brand=cpuinfo.brand)
    try:
        report: Mapping[str, Any] | None = native_isa_report()
    except KernelError as error:
        return assess_isa(None, cpuinfo.flags, brand=cpuinfo.brand, native_problem=error.message)
    return assess_isa(report, cpuinfo.flags, brand=cpuinfo.brand)
