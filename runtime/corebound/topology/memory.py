"""Memory of the machine, limited to what the process's cgroups leave it."""

from __future__ import annotations

import os
import re

from corebound.topology.model import CgroupLimits, HugePages, Memory
from corebound.topology.tree import Tree, parse_size


def read_memory(tree: Tree, cgroup: CgroupLimits) -> Memory:
    """Return total and available memory, huge pages and /dev/shm; sizes that nothing tells are 0 or None."""
    fields = _kilobyte_fields(tree.text("proc/meminfo") or "")
    total = fields.get("MemTotal", 0)
    available = fields.get("MemAvailable", fields.get("MemFree", 0))
    limit = cgroup.memory_limit_bytes
    if limit is not None and total and limit >= total:
        limit = None
    if limit is not None and cgroup.memory_available_bytes is not None:
        available = min(available, cgroup.memory_available_bytes)
    shm_total, shm_free = _shm(tree)
    return Memory(
        total_bytes=total,
        available_bytes=available,
        limit_bytes=limit,
        shm_total_bytes=shm_total,
        shm_free_bytes=shm_free,
        huge_pages=_huge_pages(tree),
        transparent_huge_pages=_selected(tree.text("sys/kernel/mm/transparent_hugepage/enabled")),
    )


def _kilobyte_fields(text: str) -> dict[str, int]:
    """Return the `Name: N kB` lines as bytes."""
    return {match[1]: int(match[2]) << 10 for match in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _huge_pages(tree: Tree) -> tuple[HugePages, ...]:
    base = "sys/kernel/mm/hugepages"
    pools = []
    for name in tree.names(base):
        size = parse_size(name.removeprefix("hugepages-"))
        total = tree.integer(f"{base}/{name}/nr_hugepages")
        free = tree.integer(f"{base}/{name}/free_hugepages")
        if size and total is not None:
            pools.append(HugePages(size, total, free or 0))
    return tuple(sorted(pools, key=lambda pool: pool.page_bytes))


def _selected(text: str | None) -> str | None:
    """Return the word in brackets: `always [madvise] never` -> `madvise`."""
    match = re.search(r"\[(\w+)\]", text or "")
    return match[1] if match else None


def _shm(tree: Tree) -> tuple[int | None, int | None]:
    if tree.is_live:
        try:
            stat = os.statvfs("/dev/shm")  # noqa: S108 - its size is the question; nothing is created
        except OSError:
            return None, None
        return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
    for line in (tree.text("proc/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) >= 4 and fields[1] == "/dev/shm":  # noqa: S108
            size = re.search(r"\bsize=(\d+[kmgKMG]?)", fields[3])
            return (parse_size(size[1]) if size else None), None
    return None, None
