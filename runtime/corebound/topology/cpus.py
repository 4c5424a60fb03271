"""CPUs and caches from sysfs, or from /proc/cpuinfo where there is no sysfs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

from corebound.topology.model import Cache, Cpu
from corebound.topology.tree import Tree, parse_size

_BASE = "sys/devices/system/cpu"
_CACHE_KINDS = {"Data": "data", "Instruction": "instruction", "Unified": "unified"}


@dataclass(frozen=True)
class CpuInfo:
    """What /proc/cpuinfo says of the first CPU; `flags` None when it lists none."""

    brand: str
    flags: frozenset[str] | None


def read_cpus(tree: Tree, affinity: tuple[int, ...] | None, warnings: list[str]) -> tuple[Cpu, ...]:
    """Return all CPUs, each on node -1 until the nodes are read.

    Source: sysfs; else /proc/cpuinfo; else `affinity` alone, with a warning for either.
    Raises: HostError for a file of the kernel that is malformed.
    """
    listed = tree.cpu_list(f"{_BASE}/online")
    present = set(tree.cpu_list(f"{_BASE}/present") or ()) | set(tree.numbered(_BASE, "cpu"))
    if not present or (listed is None and not any(_has_topology(tree, cpu) for cpu in present)):
        return _without_sysfs(tree, affinity, warnings)
    online = set(present if listed is None else listed)
    # lxcfs and the like shorten `online` to a count that starts at 0; what may run and has a topology is online.
    hidden = {cpu for cpu in affinity or () if cpu not in online and _has_topology(tree, cpu)}
    if hidden:
        warnings.append(
            f"{_BASE}/online leaves out {len(hidden)} CPUs that the process may use: the container changes sysfs"
        )
        online = {cpu for cpu in present | hidden if _has_topology(tree, cpu)}
    if not any(_has_topology(tree, cpu) for cpu in online):
        warnings.append(f"{_BASE} has no topology files: every CPU is taken for a core of its own")
    return tuple(_read_cpu(tree, cpu, cpu in online) for cpu in sorted(present | online))


def _has_topology(tree: Tree, cpu: int) -> bool:
    return tree.is_dir(f"{_BASE}/cpu{cpu}/topology")


def _read_cpu(tree: Tree, cpu: int, is_online: bool) -> Cpu:
    if not is_online:
        return Cpu(cpu, -1, -1, -1, (), online=False)
    base = f"{_BASE}/cpu{cpu}/topology"
    core_id = tree.integer(f"{base}/core_id")
    socket = tree.integer(f"{base}/physical_package_id")
    siblings = tree.cpu_list(f"{base}/core_cpus_list") or tree.cpu_list(f"{base}/thread_siblings_list") or (cpu,)
    # Some virtual machines report package -1.
    return Cpu(cpu, cpu if core_id is None else core_id, max(socket or 0, 0), -1, siblings)


def _without_sysfs(tree: Tree, affinity: tuple[int, ...] | None, warnings: list[str]) -> tuple[Cpu, ...]:
    cpus = _from_cpuinfo(tree)
    if cpus:
        warnings.append(
            "no sysfs: CPUs, cores and sockets are those of /proc/cpuinfo; NUMA nodes and caches are unknown"
        )
        return cpus
    warnings.append("no sysfs and no /proc/cpuinfo: each allowed CPU is taken for a core, all on one socket and node")
    return tuple(Cpu(cpu, cpu, 0, -1, (cpu,)) for cpu in affinity or (0,))


def _from_cpuinfo(tree: Tree) -> tuple[Cpu, ...]:
    cpus = []
    for block in (tree.text("proc/cpuinfo") or "").split("\n\n"):
        fields = _fields(block)
        number = fields.get("processor", "")
        if number.isdigit():
            socket = int(fields.get("physical id") or 0)
            cpus.append(Cpu(int(number), int(fields.get("core id") or number), socket, -1, ()))
    members: dict[tuple[int, int], list[int]] = {}
    for cpu in cpus:
        members.setdefault((cpu.socket, cpu.core_id), []).append(cpu.id)
    return tuple(replace(cpu, siblings=tuple(sorted(members[cpu.socket, cpu.core_id]))) for cpu in cpus)


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def read_cpuinfo(tree: Tree) -> CpuInfo:
    """Return brand and flags of the first CPU of /proc/cpuinfo."""
    lines = []
    try:
        # Only the first block: the kernel takes milliseconds to write those of 200 CPUs.
        with (tree.root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():
                    break
                lines.append(line)
    except OSError:
        return CpuInfo("", None)
    fields = _fields("".join(lines))
    flags = fields.get("flags")
    return CpuInfo(fields.get("model name", ""), None if flags is None else frozenset(flags.split()))


def read_caches(tree: Tree, cpus: tuple[Cpu, ...]) -> tuple[Cache, ...]:
    """Return each cache once, by level, kind and lowest CPU; empty where sysfs has none.

    Raises: HostError for a file of the kernel that is malformed.
    """
    caches = []
    covered: dict[int, set[int]] = {}
    for cpu in cpus:
        if not cpu.online:
            continue
        base = f"{_BASE}/cpu{cpu.id}/cache"
        # Sharers list the same cache under the same index, so one reading serves them all.
        for index in tree.numbered(base, "index"):
            seen = covered.setdefault(index, set())
            if cpu.id in seen:
                continue
            cache = _read_cache(tree, f"{base}/index{index}", cpu.id)
            if cache is not None:
                seen.update(cache.cpus)
                caches.append(cache)
    return tuple(sorted(caches, key=lambda cache: (cache.level, cache.kind, cache.cpus)))


def _read_cache(tree: Tree, base: str, cpu: int) -> Cache | None:
    level = tree.integer(f"{base}/level")
    kind = _CACHE_KINDS.get(tree.text(f"{base}/type") or "")
    if level is None or kind is None:
        return None
    sharers = tree.cpu_list(f"{base}/shared_cpu_list") or (cpu,)
    return Cache(
        level, cast(Literal["data", "instruction", "unified"], kind), parse_size(tree.text(f"{base}/size")), sharers
    )
