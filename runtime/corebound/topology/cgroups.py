"""Limits of the process's cgroups: v1, v2 and hybrid, along the whole path to the root."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from corebound.topology.model import CgroupLimits
from corebound.topology.tree import Tree

# v1 has no word for "unlimited"; it reports the largest page-aligned number.
_V1_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True)
class _Mount:
    """A cgroup file system: where it is mounted, and which part of the hierarchy that shows."""

    point: str
    root: str
    controllers: frozenset[str]
    is_v2: bool


def read_cgroup(tree: Tree) -> CgroupLimits:
    """Return what the cgroups of the process allow.

    Raises: HostError for a file of the kernel that is malformed.
    """
    mounts = _mounts(tree)
    paths = _paths(tree)
    if not mounts or not paths:
        return CgroupLimits()
    has_v1 = any(not mount.is_v2 and mount.controllers & {"cpuset", "memory", "cpu"} for mount in mounts)
    has_v2 = any(mount.is_v2 for mount in mounts)
    limit, available = _memory(tree, _levels(tree, mounts, paths, "memory"))
    cpuset = _levels(tree, mounts, paths, "cpuset")
    return CgroupLimits(
        version="hybrid" if has_v1 and has_v2 else "v2" if has_v2 else "v1",
        cpus=_nearest_list(tree, cpuset, ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")),
        memory_nodes=_nearest_list(tree, cpuset, ("cpuset.mems.effective", "cpuset.effective_mems", "cpuset.mems")),
        memory_limit_bytes=limit,
        memory_available_bytes=available,
        cpu_quota=_cpu_quota(tree, _levels(tree, mounts, paths, "cpu")),
    )


def _mounts(tree: Tree) -> list[_Mount]:
    text = tree.text("proc/self/mountinfo") or ""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if len(before) < 5 or len(after) < 3 or after[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(after[2].split(","))
        mounts.append(_Mount(before[4], before[3], controllers, is_v2=after[0] == "cgroup2"))
    return mounts


def _paths(tree: Tree) -> dict[str, str]:
    """Return controller -> path of the process; the empty controller is v2."""
    paths: dict[str, str] = {}
    for line in (tree.text("proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            for controller in fields[1].split(","):
                paths[controller] = fields[2]
    return paths


def _levels(tree: Tree, mounts: list[_Mount], paths: dict[str, str], controller: str) -> list[str]:
    """Return the directories from the process's own cgroup up to the mount point of a controller."""
    mount = next((m for m in mounts if not m.is_v2 and controller in m.controllers and controller in paths), None)
    path = paths.get(controller, "")
    if mount is None:
        mount = next((m for m in mounts if m.is_v2 and "" in paths), None)
        path = paths.get("", "")
    if mount is None:
        return []
    return list(_upwards(tree, mount, path))


def _upwards(tree: Tree, mount: _Mount, path: str) -> Iterator[str]:
    # A container without a cgroup namespace sees the host's path, but only its own part is mounted.
    relative = path
    if mount.root != "/" and (path + "/").startswith(mount.root.rstrip("/") + "/"):
        relative = path[len(mount.root.rstrip("/")) :]
    parts = [part for part in relative.split("/") if part and part != ".."]
    base = mount.point.strip("/")
    while parts:
        directory = "/".join([base, *parts])
        if tree.is_dir(directory):
            yield directory
        parts.pop()
    yield base


def _nearest_list(tree: Tree, levels: list[str], names: tuple[str, ...]) -> tuple[int, ...] | None:
    for directory in levels:
        for name in names:
            numbers = tree.cpu_list(f"{directory}/{name}")
            if numbers:
                return numbers
    return None


def _memory(tree: Tree, levels: list[str]) -> tuple[int | None, int | None]:
    """Return the tightest limit on the path, and the least that any level still has to give."""
    limits, available = [], []
    for directory in levels:
        # Above memory.high a process is not killed but stalled, which is no use either.
        candidates = [tree.integer(f"{directory}/{name}") for name in ("memory.max", "memory.high")]
        candidates.append(tree.integer(f"{directory}/memory.limit_in_bytes"))
        here = [value for value in candidates if value is not None and value < _V1_UNLIMITED_BYTES]
        if not here:
            continue
        used = tree.integer(f"{directory}/memory.current")
        if used is None:
            used = tree.integer(f"{directory}/memory.usage_in_bytes") or 0
        limits.append(min(here))
        available.append(max(0, min(here) - max(0, used - _reclaimable(tree, directory))))
    return (min(limits), min(available)) if limits else (None, None)


def _reclaimable(tree: Tree, directory: str) -> int:
    """Return the bytes of file cache that the kernel would drop before it refuses memory."""
    stat = dict(
        line.split(" ", 1) for line in (tree.text(f"{directory}/memory.stat") or "").splitlines() if " " in line
    )
    return int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)


def _cpu_quota(tree: Tree, levels: list[str]) -> float | None:
    quotas = []
    for directory in levels:
        fields = (tree.text(f"{directory}/cpu.max") or "").split()
        if not fields:
            quota = tree.integer(f"{directory}/cpu.cfs_quota_us")
            period = tree.integer(f"{directory}/cpu.cfs_period_us")
            fields = [str(quota), str(period)] if quota and quota > 0 and period else []
        if len(fields) == 2 and fields[0].isdigit() and int(fields[1]) > 0:
            quotas.append(int(fields[0]) / int(fields[1]))
    return min(quotas) if quotas else None
