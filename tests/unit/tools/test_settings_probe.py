"""The second probe of the host_checks role reads how a machine is set, from copies of /sys and /proc."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from unit.tools.loading import load_script

probe = load_script("playbooks/roles/host_checks/files/settings_probe.py")
TCP_HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    """Return a folder that holds these files of a kernel."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("mode", "status"),
    [("always [madvise] never", "pass"), ("[always] madvise never", "pass"), ("always madvise [never]", "fail")],
)
def test_the_mode_of_large_pages_is_the_word_in_brackets(tmp_path: Path, mode: str, status: str) -> None:
    root = tree(tmp_path, {"sys/kernel/mm/transparent_hugepage/enabled": mode})
    found = probe.check_thp(root, ["madvise", "always"])
    assert found["status"] == status
    if status == "fail":
        assert "transparent_hugepage is never, expected madvise or always" in found["detail"]


def test_every_governor_counts_and_a_machine_that_shows_none_passes(tmp_path: Path) -> None:
    assert probe.check_governor(tmp_path, "performance")["status"] == "pass"
    cpu = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    root = tree(tmp_path, {cpu.format(0): "performance", cpu.format(1): "powersave", cpu.format(12): "powersave"})
    found = probe.check_governor(root, "performance")
    assert found["status"] == "fail"
    assert "performance on 1 CPUs, powersave on 2 CPUs, expected performance on every CPU" in found["detail"]


NUMA = "sys/devices/system/node/"
BALANCING = "proc/sys/kernel/numa_balancing"


@pytest.mark.parametrize(
    ("files", "status", "said"),
    [
        ({}, "pass", "1 NUMA nodes"),
        ({NUMA + "has_cpu": "0", NUMA + "has_memory": "0", BALANCING: "1"}, "pass", "1 NUMA"),
        (
            {NUMA + "has_cpu": "0-1", NUMA + "has_memory": "0-1", BALANCING: "0"},
            "pass",
            "2 NUMA",
        ),
        ({NUMA + "has_cpu": "0-1", NUMA + "has_memory": "0-3"}, "fail", "nodes [2, 3] have memory and no CPUs"),
        ({NUMA + "has_cpu": "0-1", NUMA + "has_memory": "0"}, "fail", "nodes [1] have CPUs and no memory"),
        (
            {NUMA + "has_cpu": "0-1", NUMA + "has_memory": "0-1", BALANCING: "1"},
            "fail",
            "numa_balancing is on",
        ),
    ],
)
def test_numa_nodes_have_cpus_and_memory_and_no_balancing(
    tmp_path: Path, files: dict[str, str], status: str, said: str
) -> None:
    found = probe.check_numa(tree(tmp_path, files))
    assert found["status"] == status
    assert said in found["detail"]
    assert bool(found["hint"]) == (status == "fail")


def test_hardware_threads_are_told_and_never_a_problem(tmp_path: Path) -> None:
    files = {
        "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0,64",
        "sys/devices/system/cpu/smt/control": "on",
    }
    found = probe.check_smt(tree(tmp_path, files))
    assert (found["status"], found["detail"]) == ("pass", "2 hardware threads a core (SMT on)")


def test_a_port_that_somebody_listens_on_is_named() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        found = probe.check_ports(Path("/"), [port], ssh_port=0)
        assert found["status"] == "fail"
        assert f"port {port} is in use, expected {port} free" in found["detail"]
    assert probe.check_ports(Path("/"), [port], ssh_port=0)["status"] == "pass"


def test_the_ssh_port_must_be_listened_on(tmp_path: Path) -> None:
    listening = "   0: 00000000:{:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1\n"
    closing = "   1: 00000000:{:04X} 00000000:0000 06 00000000:00000000 00:00000000 00000000 0 0 1\n"
    root = tree(tmp_path, {"proc/net/tcp": TCP_HEADER + listening.format(22) + closing.format(2222)})
    assert probe.check_ports(root, [], ssh_port=22)["status"] == "pass"
    found = probe.check_ports(root, [], ssh_port=2222)
    assert found["status"] == "fail"
    assert "nothing listens on the ssh port 2222" in found["detail"]
