"""Where a rank really runs, asked of the kernel: not where it was meant to."""

from __future__ import annotations

import ctypes
import os
import re
import socket
from pathlib import Path
from typing import Any

from corebound import kernels
from corebound.config.env import rank_environment
from corebound.topology import parse_cpu_list

_SYS_GET_MEMPOLICY = 239  # x86-64
_MPOL_PREFERRED, _MPOL_BIND, _MPOL_INTERLEAVE = 1, 2, 3
_MAX_NODES = 1024


def place_of_this_rank(comm: str) -> dict[str, Any]:
    """Return the entry of this rank in the `ranks` list that commands print; `comm` names its provider.

    Units: peak_rss_bytes, the most memory that the process had resident so far.
    """
    environment = rank_environment()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return {
        "rank": environment.rank if environment else 0,
        "local_rank": environment.local_rank if environment else 0,
        "host": socket.gethostname(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "memory_nodes": _memory_nodes(status),
        "isa": kernels.active_isa(),
        "comm": comm,
        "peak_rss_bytes": int(_field(status, "VmHWM").split()[0]) << 10,
    }


def local_size() -> int:
    """Return how many ranks of this launch share this machine: 1 without a launch."""
    environment = rank_environment()
    return environment.local_size if environment else 1


def _memory_nodes(status: str) -> list[int]:
    """Return the NUMA nodes that this process's memory comes from: its policy's, or all that it may use."""
    mode = ctypes.c_int(0)
    mask = (ctypes.c_ulong * (_MAX_NODES // 64))()
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.syscall(_SYS_GET_MEMPOLICY, ctypes.byref(mode), mask, ctypes.c_ulong(_MAX_NODES), None, 0)
    if not failed and mode.value & 0xFFF in (_MPOL_PREFERRED, _MPOL_BIND, _MPOL_INTERLEAVE):
        nodes = [node for node in range(_MAX_NODES) if mask[node // 64] >> (node % 64) & 1]
        if nodes:
            return nodes
    return list(parse_cpu_list(_field(status, "Mems_allowed_list")))


def _field(status: str, name: str) -> str:
    match = re.search(rf"^{name}:\s*(.*)$", status, re.MULTILINE)
    return match[1] if match else "0"
