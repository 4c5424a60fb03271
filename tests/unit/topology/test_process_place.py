"""Where a process may run, as the kernel says it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest

from corebound.topology import parse_cpu_list, read_process_place

_SYS_SET_MEMPOLICY = 238
ASK = (
    "import dataclasses, json, os, sys, ctypes\n"
    "from corebound.topology import read_process_place\n"
    "mode, mask, cpu = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])\n"
    "os.sched_setaffinity(0, {cpu})\n"
    "words = (ctypes.c_ulong * 16)(mask)\n"
    f"failed = ctypes.CDLL(None).syscall({_SYS_SET_MEMPOLICY}, mode, words if mask else None, 1025 if mask else 0)\n"
    "place = dataclasses.asdict(read_process_place())\n"
    "print(json.dumps({**place, 'failed': failed}))\n"
)


def test_the_place_of_this_process_is_the_kernels_view() -> None:
    place = read_process_place()
    assert list(place.cpus) == sorted(os.sched_getaffinity(0))
    assert parse_cpu_list(place.cpus_allowed_list) == place.cpus
    assert set(place.memory_nodes) <= set(parse_cpu_list(place.mems_allowed_list))
    assert place.peak_rss_bytes > 1 << 20
    assert (place.memory_policy == "unknown") == (place.policy_error is not None)


@pytest.mark.parametrize(("mode", "mask", "name"), [(0, 0, "default"), (1, 1, "preferred"), (2, 1, "bind")])
def test_a_policy_that_was_set_is_named_with_its_nodes(mode: int, mask: int, name: str) -> None:
    if ctypes.CDLL(None).syscall(_SYS_SET_MEMPOLICY, 0, None, 0) != 0:
        pytest.skip("this machine lacks permission to set a memory policy")
    cpu = min(os.sched_getaffinity(0))
    words = [sys.executable, "-c", ASK, str(mode), str(mask), str(cpu)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    place = json.loads(done.stdout)
    assert place["failed"] == 0
    assert (place["memory_policy"], place["cpus"], place["cpus_allowed_list"]) == (name, [cpu], str(cpu))
    assert place["memory_nodes"] == ([0] if mask else list(parse_cpu_list(place["mems_allowed_list"])))
