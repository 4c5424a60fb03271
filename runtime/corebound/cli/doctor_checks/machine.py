"""Checks of what the hardware and the container give: CPUs, NUMA, caches of time and memory."""

from __future__ import annotations

from collections import Counter

from corebound.cli.doctor_checks.base import Check, Facts
from corebound.cli.tables import count, format_bytes
from corebound.topology import format_cpu_list

GIB = 1 << 30
_MIN_MEMORY_BYTES = 2 * GIB
_MIN_SHM_BYTES = 256 << 20
_SHM = "/dev/shm"  # noqa: S108 - named in messages, never opened
_FAST_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")
_KUBERNETES_PIN = (
    "give every container of the pod whole-number CPU requests equal to its limits, and the node's kubelet "
    "`cpuManagerPolicy: static`"
)


def allowed_cpus(facts: Facts) -> Check:
    """Whole cores are usable, and which part of the machine they are."""
    found = facts.topology
    cores = found.physical_cores()
    siblings = {cpu.id: cpu.siblings for cpu in found.cpus}
    detail = (
        f"{len(found.allowed_cpus)} of {len(found.online_cpus)} CPUs, {len(cores)} of {len(found.all_cores())} cores "
        f"({format_cpu_list(found.allowed_cpus)})"
    )
    num_offline = len(found.cpus) - len(found.online_cpus)
    if num_offline:
        detail += f"; {count(num_offline, 'CPU')} offline"
    whole = [core for core in cores if len(core.cpus) == len(siblings[core.cpus[0]])]
    if whole and len(whole) != len(cores):
        return Check(
            "allowed-cpus",
            "warn",
            f"{detail}; of {count(len(cores) - len(whole), 'core')} only some SMT siblings: others may use the rest",
            "allow both siblings of a core: kubelet option `full-pcpus-only`, or a CPU set made of whole cores",
        )
    return Check("allowed-cpus", "pass", detail)


def cpu_quota(facts: Facts) -> Check:
    """No bandwidth limit stalls threads."""
    quota = facts.topology.cgroup.cpu_quota
    num_cpus = len(facts.topology.allowed_cpus)
    if quota is None:
        return Check("cpu-quota", "pass", "no limit on CPU time")
    if quota >= num_cpus:
        return Check("cpu-quota", "pass", f"{quota:g} CPUs of time for {num_cpus} allowed CPUs")
    return Check(
        "cpu-quota",
        "warn",
        f"the cgroup allows {quota:g} CPUs of time on {count(num_cpus, 'CPU')}: busy threads stall",
        "pin whole CPUs instead of limiting time: docker `--cpuset-cpus`; in Kubernetes " + _KUBERNETES_PIN,
    )


def smt(facts: Facts) -> Check:
    """Whether cores have sibling CPUs, which binding leaves idle."""
    number = facts.topology.threads_per_core
    if number == 1:
        return Check("smt", "pass", "one CPU a core")
    return Check(
        "smt", "pass", f"{number} CPUs a core; ranks take one CPU of each core unless a core list says otherwise"
    )


def numa(facts: Facts) -> Check:
    """Nodes, their kinds, and whether the allowed cores are spread evenly."""
    found = facts.topology
    if not found.has_numa:
        return Check("numa", "pass", "the kernel shows no NUMA nodes: the machine counts as one")
    cores = Counter(core.node for core in found.physical_cores())
    spread = ", ".join(f"node {node}: {count(number, 'core')}" for node, number in sorted(cores.items()))
    others = Counter(node.kind for node in found.nodes if node.kind != "dram")
    kinds = "".join(f"; {number} {kind}" for kind, number in sorted(others.items()))
    detail = f"{len(found.nodes)} nodes ({spread}{kinds})" if len(found.nodes) > 1 else f"1 node ({spread})"
    empty = [node for node in cores if not found.node(node).memory_bytes]
    if empty:
        return Check(
            "numa",
            "warn",
            f"{detail}; nodes {format_cpu_list(empty)} have CPUs but no memory: all their reads go to another node",
            "populate memory channels of every socket evenly, or allow CPUs of nodes with memory only",
        )
    barred = [node for node in cores if not found.node(node).allowed]
    if barred:
        return Check(
            "numa",
            "warn",
            f"{detail}; cpuset.mems forbids memory of nodes {format_cpu_list(barred)}, whose CPUs are allowed",
            "align the CPU set with its memory nodes: docker `--cpuset-mems`, kubelet `memoryManagerPolicy: Static`",
        )
    if len(set(cores.values())) > 1:
        return Check(
            "numa",
            "warn",
            f"{detail}; the allowed cores are spread unevenly, so ranks will differ in speed",
            "allow as many cores on each node, or choose them with --bind_core_list",
        )
    return Check("numa", "pass", detail)


def numa_balancing(facts: Facts) -> Check:
    """The kernel does not move pages that binding has placed."""
    setting = facts.tree.text("proc/sys/kernel/numa_balancing")
    if setting is None or setting == "0" or len(facts.topology.cpu_nodes()) < 2:
        return Check("numa-balancing", "pass", "off, or there is nothing to balance")
    return Check(
        "numa-balancing",
        "warn",
        f"kernel.numa_balancing is {setting}: the kernel unmaps pages of bound ranks to see who uses them",
        "sysctl -w kernel.numa_balancing=0",
    )


def memory(facts: Facts) -> Check:
    """Enough memory is left, and which limit holds."""
    memory = facts.topology.memory
    if not memory.total_bytes:
        return Check("memory", "pass", "size unknown: no /proc/meminfo")
    detail = f"{format_bytes(memory.available_bytes)} available of {format_bytes(memory.total_bytes)}"
    if memory.limit_bytes is not None:
        detail += f"; the cgroup limits it to {format_bytes(memory.limit_bytes)}"
    if memory.available_bytes < _MIN_MEMORY_BYTES:
        return Check(
            "memory",
            "warn",
            f"{detail}; a model of a billion 16-bit parameters needs about {format_bytes(_MIN_MEMORY_BYTES)}",
            "free memory, raise the container's memory limit, or use more nodes",
        )
    return Check("memory", "pass", detail)


def shared_memory(facts: Facts) -> Check:
    """Shared memory is large enough for the collectives of ranks on one machine."""
    memory = facts.topology.memory
    hint = "docker `--shm-size=1g`; in Kubernetes an emptyDir with `medium: Memory` mounted on " + _SHM
    if memory.shm_total_bytes is None:
        return Check("shm", "warn", f"{_SHM} is not mounted: collectives fall back to gloo, which is slower", hint)
    usable = memory.shm_total_bytes if memory.shm_free_bytes is None else memory.shm_free_bytes
    detail = f"{_SHM} has {format_bytes(memory.shm_total_bytes)}, {format_bytes(usable)} usable"
    if usable < _MIN_SHM_BYTES:
        return Check(
            "shm", "warn", f"{detail}; many ranks need up to {format_bytes(_MIN_SHM_BYTES)}, else gloo is used", hint
        )
    return Check("shm", "pass", detail)


def transparent_huge_pages(facts: Facts) -> Check:
    """Large pages are to be had for weights."""
    setting = facts.topology.memory.transparent_huge_pages
    if setting != "never":
        return Check("huge-pages", "pass", f"transparent huge pages: {setting or 'not visible'}")
    return Check(
        "huge-pages",
        "warn",
        "transparent huge pages are off: reading weights misses the TLB far more often",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


def governor(facts: Facts) -> Check:
    """The allowed CPUs run at full speed."""
    names = Counter(
        facts.tree.text(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor")
        for cpu in facts.topology.allowed_cpus
    )
    slow = {name: number for name, number in names.items() if name not in (None, "performance")}
    if slow:
        listed = ", ".join(f"{name} on {count(number, 'CPU')}" for name, number in slow.items())
        return Check(
            "cpu-governor",
            "warn",
            f"{listed}: cores clock down while ranks wait for each other",
            "cpupower frequency-set -g performance",
        )
    return Check("cpu-governor", "pass", "performance" if names.get("performance") else "not visible, as in most VMs")


def clocksource(facts: Facts) -> Check:
    """Reading the clock needs no system call."""
    name = facts.tree.text("sys/devices/system/clocksource/clocksource0/current_clocksource")
    if name is None or name in _FAST_CLOCKS:
        return Check("clocksource", "pass", name or "not visible")
    return Check(
        "clocksource",
        "warn",
        f"{name}: every look at the clock is a system call, and waiting ranks look often",
        "boot with `clocksource=tsc` if the hardware's TSC is stable (see `dmesg | grep -i tsc`)",
    )


def container(facts: Facts) -> Check:
    """In a pod, CPUs are pinned: a shared CPU set changes while ranks run."""
    found = facts.topology
    in_pod = "KUBERNETES_SERVICE_HOST" in facts.environ or "kubepods" in (facts.tree.text("proc/self/cgroup") or "")
    in_container = in_pod or any((facts.tree.root / name).exists() for name in (".dockerenv", "run/.containerenv"))
    if not in_container:
        return Check("container", "pass", "no container seen")
    place = "a Kubernetes pod" if in_pod else "a container"
    pinned = len(found.allowed_cpus) < len(found.online_cpus)
    if pinned or not in_pod:
        reach = f"pinned to {count(len(found.allowed_cpus), 'CPU')}" if pinned else "with every CPU of the machine"
        return Check("container", "pass", f"{place}, {reach}")
    return Check(
        "container",
        "warn",
        f"{place} on all {len(found.online_cpus)} CPUs: the CPU manager pins none, and the set may shrink under a rank",
        _KUBERNETES_PIN,
    )
