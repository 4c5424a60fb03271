#!/usr/bin/python3
"""A rank that writes what the kernel says about itself: DIR/<rank>.json. It touches the MiB that it is told to.

Usage: probe.py DIR MIB
"""

import ctypes
import json
import mmap
import os
import re
import sys
from pathlib import Path

SYS_GET_MEMPOLICY = 239  # x86-64
MODES = ["default", "preferred", "bind", "interleave", "local"]
MAX_NODES = 1024


def memory_policy() -> dict[str, object]:
    """Returns what get_mempolicy answers for this thread."""
    mode = ctypes.c_int()
    words = (ctypes.c_ulong * (MAX_NODES // 64))()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(SYS_GET_MEMPOLICY, ctypes.byref(mode), words, MAX_NODES, None, 0) != 0:
        return {"error": os.strerror(ctypes.get_errno())}
    nodes = [node for node in range(MAX_NODES) if words[node // 64] >> node % 64 & 1]
    return {"mode": MODES[mode.value], "nodes": nodes}


def pages_of_nodes(num_mib: int) -> dict[int, int]:
    """Returns how many pages of newly touched memory lie on each node."""
    size = num_mib << 20
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, size, mmap.PAGESIZE):
        memory[offset] = 1
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    own = next(int(low, 16) for low, high in ranges if int(low, 16) <= start < int(high, 16))
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        if int(line.split()[0], 16) == own:
            return {int(node): int(count) for node, count in re.findall(r"\bN(\d+)=(\d+)", line)}
    return {}


def main(folder: str, num_mib: str) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
    report = {
        "env": {name: os.environ.get(name) for name in names},
        "cpus": sorted(os.sched_getaffinity(0)),
        "runs_on": ctypes.CDLL(None).sched_getcpu(),
        "policy": memory_policy(),
        "pages": pages_of_nodes(int(num_mib)),
    }
    (Path(folder) / f"{os.environ['RANK']}.json").write_text(json.dumps(report))


main(*sys.argv[1:])
