"""What a Kubernetes pod gave its processes, as far as that can be seen from inside: nothing there says so in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from corebound.topology.cpulist import format_cpu_list
from corebound.topology.model import Topology
from corebound.topology.tree import Tree

# The kubelet mounts these into every container, whatever its environment says; sshd gives its sessions an own one.
_KUBELET_MOUNT = re.compile(r" /dev/termination-log | /(?:\S+/)?pods/[0-9a-f-]{36}/etc-hosts /etc/hosts ")
_QUALITY = re.compile(r"kubepods\S*?(burstable|besteffort)")

Quality = Literal["Guaranteed", "Burstable", "BestEffort"]


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod's share of its node. `own_cpus` is whether no other pod has its CPUs, as far as can be seen, `reason` why.

    `quality` is the pod's quality of service where the path of its cgroup shows it, else None.
    """

    own_cpus: bool
    reason: str
    quality: Quality | None

    def describe(self, topology: Topology) -> str:
        """Return in a few words which CPUs the pod has."""
        kind = "of its own" if self.own_cpus else f"shared with other pods ({self.reason})"
        cpus = format_cpu_list(topology.allowed_cpus)
        return f"{len(topology.allowed_cpus)} of the node's {len(topology.online_cpus)} CPUs ({cpus}), {kind}"


def read_pod(tree: Tree, topology: Topology, environ: Mapping[str, str] | None = None) -> Pod | None:
    """Return what the pod that this process runs in gives it, None outside of a pod."""
    paths = tree.text("proc/self/cgroup") or ""
    mounts = tree.text("proc/self/mountinfo") or ""
    named = "KUBERNETES_SERVICE_HOST" in (environ or {})
    if not (named or "kubepods" in paths or _KUBELET_MOUNT.search(mounts)):
        return None
    quality = _quality(paths)
    reason = _shared_because(topology, quality)
    return Pod(own_cpus=reason is None, reason=reason or _seen(topology, quality), quality=quality)


def shared_memory_kind(tree: Tree) -> str | None:
    """Return what /dev/shm is: `default` of the container's runtime, a `volume` in memory, `disk`, or None for none."""
    for line in reversed((tree.text("proc/mounts") or "").splitlines()):
        fields = line.split()
        if len(fields) >= 3 and fields[1] == "/dev/shm":  # noqa: S108  a name in a table
            if fields[2] != "tmpfs":
                return "disk"
            return "default" if fields[0] == "shm" else "volume"
    return None


def _quality(paths: str) -> Quality | None:
    match = _QUALITY.search(paths)
    if match is not None:
        return "Burstable" if match[1] == "burstable" else "BestEffort"
    # Guaranteed pods lie directly below; a cgroup namespace hides all of it.
    return "Guaranteed" if "kubepods" in paths else None


def _shared_because(topology: Topology, quality: Quality | None) -> str | None:
    num_cpus, quota = len(topology.allowed_cpus), topology.cgroup.cpu_quota
    if quality in ("Burstable", "BestEffort"):
        return f"{quality} pods get none of their own"
    if quota is not None and quota != int(quota):
        return f"its limit of {quota:g} CPUs is not whole"
    if quota is not None and quota < num_cpus:
        return f"a limit of {quota:g}, but {num_cpus} are allowed"
    if num_cpus == len(topology.online_cpus):
        return "all of the node's"
    return None


def _seen(topology: Topology, quality: Quality | None) -> str:
    quota = topology.cgroup.cpu_quota
    if quota is not None:
        return f"its limit of {quota:g} CPUs is what is allowed"
    if quality == "Guaranteed":
        return "a Guaranteed pod"
    return "fewer than the node has, no limit on time: Guaranteed, or a Burstable pod beside pinned ones"
