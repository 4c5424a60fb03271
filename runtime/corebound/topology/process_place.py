"""Where this process may run and where its memory comes from, asked of the kernel: not where it was meant to."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

from corebound.topology.cpulist import parse_cpu_list

_SYS_GET_MEMPOLICY = 239  # x86-64
_MODE_BITS = 0xFFF  # the rest are flags
_MAX_NODES = 1024
# Of linux/mempolicy.h. The first five are what a launch can ask for or leave as it was.
_POLICIES = ("default", "preferred", "bind", "interleave", "local", "preferred-many", "weighted-interleave")
_WITH_NODES = frozenset({"preferred", "bind", "interleave", "preferred-many", "weighted-interleave"})


@dataclass(frozen=True, kw_only=True)
class ProcessPlace:
    """The kernel's view of this process.

    `memory_policy` is "unknown" where the kernel refuses to say, and `policy_error` has its reason then. `memory_nodes`
    are the policy's, or all nodes that the process may use where the policy names none.
    """

    cpus: tuple[int, ...]
    cpus_allowed_list: str
    mems_allowed_list: str
    memory_policy: str
    memory_nodes: tuple[int, ...]
    policy_error: str | None
    peak_rss_bytes: int


def read_process_place() -> ProcessPlace:
    """Return where this process may run."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    mems_allowed = _field(status, "Mems_allowed_list")
    policy, nodes, error = _memory_policy()
    return ProcessPlace(
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        cpus_allowed_list=_field(status, "Cpus_allowed_list"),
        mems_allowed_list=mems_allowed,
        memory_policy=policy,
        memory_nodes=nodes or parse_cpu_list(mems_allowed),
        policy_error=error,
        peak_rss_bytes=int(_field(status, "VmHWM").split()[0]) << 10,
    )


def _memory_policy() -> tuple[str, tuple[int, ...], str | None]:
    """Return the name of this thread's memory policy, its nodes, and why the kernel does not say."""
    mode = ctypes.c_int(0)
    mask = (ctypes.c_ulong * (_MAX_NODES // 64))()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SYS_GET_MEMPOLICY, ctypes.byref(mode), mask, ctypes.c_ulong(_MAX_NODES), None, 0) != 0:
        return "unknown", (), os.strerror(ctypes.get_errno())
    number = mode.value & _MODE_BITS
    name = _POLICIES[number] if number < len(_POLICIES) else f"policy {number}"
    nodes = tuple(node for node in range(_MAX_NODES) if mask[node // 64] >> (node % 64) & 1)
    return name, nodes if name in _WITH_NODES else (), None


def _field(status: str, name: str) -> str:
    match = re.search(rf"^{name}:\s*(.*)$", status, re.MULTILINE)
    return match[1] if match else "0"
