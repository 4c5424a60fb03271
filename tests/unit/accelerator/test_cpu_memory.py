from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from corebound.accelerator import cpu_memory
from corebound.accelerator.cpu import CpuAccelerator
from corebound.topology import ProcessPlace, read_topology
from corebound.topology.tree import Tree
from fixtures.topology_trees import GIB, shared_machine


def place(policy: str = "default", nodes: tuple[int, ...] = (), allowed: str = "0-63") -> ProcessPlace:
    return ProcessPlace(
        cpus=(0,), cpus_allowed_list="0", mems_allowed_list=allowed, memory_policy=policy, memory_nodes=nodes,
        policy_error=None, peak_rss_bytes=0,
    )  # fmt: skip


def limits(machine: str, where: ProcessPlace) -> tuple[float, float]:
    root = shared_machine(machine)
    total, available = cpu_memory.limits(Tree(root), read_topology(root), where)
    return total / GIB, available / GIB


@pytest.mark.parametrize(
    ("machine", "where", "expected"),
    [
        # The whole host: two nodes of 256 GiB, half of it available.
        ("xeon-2s-ht", place(), (512, 256)),
        # Bound to one node, by policy or by cpuset: the node's memory, of which half is free.
        ("xeon-2s-ht", place("bind", (1,)), (256, 128)),
        ("xeon-2s-ht", place(allowed="0"), (256, 128)),
        ("xeon-2s-ht", place("bind", (0, 1)), (512, 256)),
        # These spill over, so they limit nothing.
        ("xeon-2s-ht", place("preferred", (1,)), (512, 256)),
        ("xeon-2s-ht", place("interleave", (0,)), (512, 256)),
        ("xeon-2s-ht", place("unknown"), (512, 256)),
        # cgroup v2: 8 GiB one level up, of which 3 are used and 1 of those can be dropped.
        ("container-6-of-128", place(), (8, 6)),
        ("container-6-of-128", place("bind", (0,)), (8, 6)),
        # cgroup v1: 4 GiB, 1 used.
        ("cgroup-v1-hybrid", place("bind", (1,)), (4, 3)),
        ("vm", place(), (16, 8)),
    ],
)
def test_memory_is_the_least_of_host_cgroup_and_bound_nodes(
    machine: str, where: ProcessPlace, expected: tuple[float, float]
) -> None:
    """DeepSpeed: total_memory and available_memory are "host values, not cgroup or NUMA-node values"."""
    assert limits(machine, where) == expected


def test_file_cache_of_a_bound_node_counts_as_available(tmp_path: Path) -> None:
    directory = tmp_path / "sys/devices/system/node/node3"
    directory.mkdir(parents=True)
    lines = ["MemTotal: 900 kB", "MemFree: 100 kB", "Inactive(file): 30 kB", "Active(file): 7 kB", "SReclaimable: 2 kB"]
    (directory / "meminfo").write_text("\n".join(f"Node 3 {line}" for line in lines), encoding="utf-8")
    assert cpu_memory._available_of_node(Tree(tmp_path), 3) == 132 << 10


def test_this_machine_gives_what_it_can() -> None:
    accelerator = CpuAccelerator()
    assert 0 < accelerator.available_memory() <= accelerator.total_memory() <= _host_bytes()


PEAK = """
import sys
from corebound.accelerator.cpu import CpuAccelerator
accelerator = CpuAccelerator()
MIB = 1 << 20
start = accelerator.max_memory_allocated()
block = bytearray(b"x" * (200 * MIB))
del block
# Nobody looked while the block was there.
assert accelerator.max_memory_allocated() - start > 190 * MIB, "the peak was missed"
assert accelerator.memory_allocated() < start + 100 * MIB
accelerator.reset_peak_memory_stats()
assert accelerator.max_memory_allocated() < start + 100 * MIB, "the peak was not reset"
stats = accelerator.memory_stats()
assert set(stats) >= {"allocated_bytes.all.current", "allocated_bytes.all.peak"}
"""


def test_the_peak_is_seen_though_nobody_looked_and_can_begin_anew() -> None:
    """DeepSpeed: max_memory_* is "updated whenever one of the getters is called (not a true peak)"."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_peak_that_cannot_be_reset_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cpu_memory, "open", refuse, raising=False)
    monkeypatch.setattr(logging.getLogger("corebound"), "propagate", True)
    cpu_memory._warn_peak_stays.cache_clear()
    with caplog.at_level(logging.WARNING, logger="corebound"):
        cpu_memory.reset_peak()
        cpu_memory.reset_peak()
    assert [record.getMessage() for record in caplog.records] == [
        "peak memory counts from the start of the process: /proc/self/clear_refs: Permission denied"
    ]


def _host_bytes() -> int:
    return int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1]) << 10
