"""Checks of what the hardware and the container give: CPUs, NUMA, caches of time and memory."""

from __future__ import annotations

from collections import Counter

from corebound.cli.doctor_checks.base import Check, Facts
from corebound.cli.tables import count, format_bytes
from corebound.topology import format_cpu_list
from corebound.topology.pod import Pod, read_pod, shared_memory_kind

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
    kind = shared_memory_kind(facts.tree)
    if kind == "disk":
        return Check("shm", "warn", f"{detail}; it is on a disk: every sum of ranks writes to it", hint)
    if read_pod(facts.tree, facts.topology, facts.environ) is not None and kind is not None:
        given = "what the container runtime gives by default" if kind == "default" else "a volume in memory"
        detail += f"; {given}"
        if kind == "volume" and memory.limit_bytes is not None:
            detail += f", part of the limit of {format_bytes(memory.limit_bytes)}"
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


def container(facts: Facts) -> list[Check]:
    """In a pod, CPUs are pinned and aligned: a shared CPU set changes while ranks run."""
    pod = read_pod(facts.tree, facts.topology, facts.environ)
    if pod is None:
        found = facts.topology
        if not any((facts.tree.root / name).exists() for name in (".dockerenv", "run/.containerenv")):
            return [Check("container", "pass", "no container seen")]
        pinned = len(found.allowed_cpus) < len(found.online_cpus)
        reach = f"pinned to {count(len(found.allowed_cpus), 'CPU')}" if pinned else "with every CPU of the machine"
        return [Check("container", "pass", f"a container, {reach}")]
    kind = f"a {pod.quality} Kubernetes pod" if pod.quality else "a Kubernetes pod; its quality of service is hidden"
    return [Check("container", "pass", kind), _cpu_manager(facts, pod), _topology_manager(facts)]


def _cpu_manager(facts: Facts, pod: Pod) -> Check:
    """Whether the kubelet's CPU manager gave the pod CPUs that no other pod has."""
    cpus = pod.describe(facts.topology)
    if pod.own_cpus:
        return Check("cpu-manager", "pass", f"static, as far as can be seen: {cpus}; {pod.reason}")
    return Check("cpu-manager", "warn", f"none: {cpus}; the set may change while ranks run", _KUBERNETES_PIN)


def _topology_manager(facts: Facts) -> Check:
    """Whether the pod's CPUs lie on one NUMA node, or fill those that they lie on."""
    cores = Counter(core.node for core in facts.topology.physical_cores())
    whole = Counter(core.node for core in facts.topology.all_cores())
    nodes = format_cpu_list(sorted(cores))
    if len(whole) < 2:
        return Check("topology-manager", "pass", "one NUMA node: nothing to align")
    if len(cores) == 1:
        return Check("topology-manager", "pass", f"all CPUs lie on NUMA node {nodes}")
    if sum(cores.values()) > max(whole.values()):
        return Check("topology-manager", "pass", f"more cores than a NUMA node has: they lie on nodes {nodes}")
    return Check(
        "topology-manager",
        "warn",
        f"{sum(cores.values())} cores, which one NUMA node could give, lie on nodes {nodes}",
        "kubelet `topologyManagerPolicy: single-numa-node` with `cpuManagerPolicy: static`, or a pod a whole node",
    )
