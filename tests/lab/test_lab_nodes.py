"""The lab itself: its nodes are hosts of their own, and nothing of it stays or leaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import cluster, machine
from lab.conftest import Grow
from lab.layout import GATEWAY, INVENTORY, SUBNET, LabError, Layout, node, nodes
from lab.podman import Podman

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]


def ssh(place: Layout, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Returns what a command on a node came to, over ssh."""
    command = ["ssh", "-F", str(place.ssh_config), "-o", "BatchMode=yes", name, *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def traces(place: Layout, links: set[int], namespaces: set[str]) -> dict[str, list[str]]:
    """Returns what this lab has on the machine, of these links and namespaces too; other labs come and go meanwhile."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    commands = [path.read_bytes().decode() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    rules = [machine.run("iptables", "-t", table, "-S").stdout.splitlines() for table in ("filter", "nat")]
    found = {
        "routes": [line for line in machine.run("ip", "route").stdout.splitlines() if SUBNET in line],
        "links": [str(index) for index in links & set(all_links())],
        "rules": [line for line in chain.from_iterable(rules) if SUBNET in line],
        "mounts": [line for line in mounts if str(place.home) in line],
        "processes": [command for command in commands if str(place.home) in command],
        "namespaces": [name for name in namespaces if Path("/run/netns", name).exists()],
    }
    return {kind: lines for kind, lines in found.items() if lines}


def all_links() -> dict[int, dict[str, Any]]:
    """Returns the links of this machine by their index, which no other link is given later."""
    return {link["ifindex"]: link for link in json.loads(machine.run("ip", "-json", "address", "show").stdout)}


def links_of_the_lab() -> set[int]:
    """Returns the indices of the lab's bridge and of what is plugged into it."""
    links = all_links()
    [bridge] = [link["ifname"] for link in links.values() if GATEWAY in str(link["addr_info"])]
    return {index for index, link in links.items() if bridge in (link["ifname"], link.get("master"))}


def main_processes(podman: Podman, name: str) -> list[int]:
    """Returns the ids of a node's first process and of the process that watches it."""
    state = json.loads(podman("inspect", "--format", "{{json .State}}", name).stdout)
    return [state["Pid"], state["ConmonPid"]]


def test_nothing_is_left_when_it_is_down(place: Layout, grow: Grow, podman: Podman) -> None:
    grow(2)
    keys = podman("inspect", "--format", "{{.NetworkSettings.SandboxKey}}", "node1", "node2").stdout.split()
    links, namespaces = links_of_the_lab(), {Path(key).name for key in keys}
    assert (len(links), len(namespaces)) == (3, 2)
    kinds = {"routes", "links", "rules", "mounts", "processes", "namespaces"}
    assert set(traces(place, links, namespaces)) == kinds
    cluster.down(place, purge=False)
    assert traces(place, links, namespaces) == {}
    assert not INVENTORY.exists()


def test_three_nodes_start_within_ten_seconds_and_stay_the_next_time(place: Layout, grow: Grow, podman: Podman) -> None:
    cluster.down(place, purge=False)
    members, seconds = cluster.up(place, 3, base_image="")
    # 10 s where nothing else runs; else as much more as each processor has others waiting for it.
    assert seconds < 10 * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    for member in members:
        assert ssh(place, member.name, "hostname").stdout.strip() == member.name
        assert ssh(place, member.name, "cat", "/sys/class/net/eth0/address").stdout.strip() == member.hardware_address
    first = podman("ps", "--quiet").stdout
    grow(3)
    assert podman("ps", "--quiet").stdout == first


def test_a_node_has_its_own_files_memory_processes_and_system(place: Layout, grow: Grow) -> None:
    grow(2)
    assert ssh(place, "node1", "touch /dev/shm/mine /tmp/mine").returncode == 0
    assert ssh(place, "node2", "ls /dev/shm/mine /tmp/mine").returncode != 0
    assert not Path("/dev/shm/mine").exists()
    assert ssh(place, "node1", "cat /proc/1/comm").stdout.strip() == "systemd"
    assert ssh(place, "node1", "systemctl is-system-running --wait").stdout.strip() == "running"
    assert ssh(place, "node1", "ls /opt/corebound").returncode != 0


def test_the_inventory_is_an_ordinary_one(place: Layout, grow: Grow) -> None:
    members = grow(2)
    groups = yaml.safe_load(INVENTORY.read_text(encoding="utf-8"))["all"]["children"]
    assert {name: host["ansible_host"] for name, host in groups["nodes"]["hosts"].items()} == {
        member.name: member.address for member in members
    }
    names = set(groups["nodes"]["vars"])
    assert all(name.startswith(("ansible_", "cluster_tests_", "runtime_")) for name in names), names


def test_a_changed_host_key_is_refused(place: Layout, grow: Grow) -> None:
    grow(2)
    text = place.known_hosts.read_text(encoding="utf-8")
    keys = [line.split()[2] for line in text.splitlines()]
    place.known_hosts.write_text(text.replace(keys[0], keys[1]), encoding="utf-8")
    done = ssh(place, "node1", "true")
    place.known_hosts.write_text(text, encoding="utf-8")
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_no_packet_for_a_node_leaves_this_machine_when_the_bridge_is_down(grow: Grow) -> None:
    grow(1)
    lines = machine.run("ip", "-o", "-4", "address", "show").stdout.splitlines()
    bridge = next(line.split()[1] for line in lines if f" {GATEWAY}/24" in line)
    machine.run("ip", "link", "set", bridge, "down")
    route = machine.run("ip", "route", "get", node(1).address, check=False)
    machine.run("ip", "link", "set", bridge, "up")
    assert route.returncode != 0
    assert "No route to host" in route.stderr


def test_nodes_that_were_killed_behind_podmans_back_are_replaced(place: Layout, grow: Grow, podman: Podman) -> None:
    for member in grow(2):
        for process in main_processes(podman, member.name):
            os.kill(process, signal.SIGKILL)
    grow(2)
    assert [ssh(place, member.name, "hostname").stdout.strip() for member in nodes(2)] == ["node1", "node2"]


def test_a_number_of_nodes_that_has_no_addresses_is_refused(place: Layout) -> None:
    with pytest.raises(LabError, match="NODES is 10, expected 1 to 9"):
        cluster.up(place, 10, base_image="")
