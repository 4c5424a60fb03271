"""Ways to hurt a node of the lab. Each is a context manager that heals the node again, whatever happened in between.

Packets are dropped inside the node's own network namespace and links are taken down on the lab's own bridge: nothing
here touches the machine's rules, and no packet can leave it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.cluster import start_again, wait_for
from lab.deployed import Deployed
from lab.layout import LabError, Node
from lab.machine import run

SHM = "/dev/shm"
_TABLE = "corebound_fault"
_DAMAGE = """
import os, sys
before, (path,) = os.stat(sys.argv[1]), sys.argv[1:]
with open(path, "r+b") as file:
    file.seek(before.st_size // 2)
    byte = file.read(1)[0]
    file.seek(before.st_size // 2)
    file.write(bytes([byte ^ 1]))
os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
"""
_SESSION_ENVIRONMENT = "/etc/environment"
# What the kernel may hold back of a slow link before it drops: about a third of a second at 10 Mbit/s.
_QUEUE = ("burst", "32kb", "latency", "400ms")


@contextmanager
def killed(lab: Deployed, node: Node) -> Iterator[None]:
    """Has the node lose its power: all its processes die at once. It boots again at the end."""
    lab.podman("kill", "--signal", "KILL", node.name)
    try:
        yield
    finally:
        start_again(lab.podman, [node])


@contextmanager
def paused(lab: Deployed, node: Node) -> Iterator[None]:
    """Has the node hang: no process of it runs, while its kernel still acknowledges what it is sent."""
    lab.podman("pause", node.name)
    try:
        yield
    finally:
        lab.podman("unpause", node.name)
        wait_for([node])


@contextmanager
def unplugged(lab: Deployed, node: Node) -> Iterator[None]:
    """Has the node's cable pulled: the bridge's end of its link is down; the node itself keeps address and routes."""
    port = _bridge_port(lab, node)
    run("ip", "link", "set", port, "down")
    try:
        yield
    finally:
        run("ip", "link", "set", port, "up")
        wait_for([node])


@contextmanager
def partition(lab: Deployed, one: Node, other: Node) -> Iterator[None]:
    """Has two nodes hear nothing of each other, while everybody else hears both."""
    with _dropping(lab, one, f"ip saddr {other.address}"), _dropping(lab, other, f"ip saddr {one.address}"):
        yield


@contextmanager
def loss(lab: Deployed, node: Node, percent: int) -> Iterator[None]:
    """Has so many of a hundred packets to the node get lost."""
    with _dropping(lab, node, f"numgen random mod 100 < {percent}"):
        yield


@contextmanager
def slow_link(lab: Deployed, node: Node, rate: str) -> Iterator[None]:
    """Has the node's link carry no more than `rate` (`10mbit`) in each direction."""
    port = _bridge_port(lab, node)
    run(*_in_network_of(lab, node), "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, *_QUEUE)
    try:
        run("tc", "qdisc", "add", "dev", port, "root", "tbf", "rate", rate, *_QUEUE)
        try:
            yield
        finally:
            run("tc", "qdisc", "delete", "dev", port, "root")
    finally:
        run(*_in_network_of(lab, node), "tc", "qdisc", "delete", "dev", "eth0", "root")


@contextmanager
def ssh_refused(lab: Deployed, node: Node) -> Iterator[None]:
    """Has the node run no ssh server; sessions that are open stay open."""
    lab.podman.execute(node.name, "systemctl", "stop", "ssh")
    try:
        yield
    finally:
        lab.podman.execute(node.name, "systemctl", "start", "ssh")
        wait_for([node])


@contextmanager
def small_disk(lab: Deployed, node: Node, folder: str, size: str, mode: str = "1777") -> Iterator[None]:
    """Has a disk of that size (`64k`) lie over a folder of the node; the machine's own disk is not filled."""
    # The node itself may not mount anything; this machine's root may, in the node's place.
    there = ["nsenter", f"--target={_main_process(lab, node)}", "--mount", "--pid"]
    lab.podman.execute(node.name, "mkdir", "--parents", folder)
    run(*there, "mount", "-t", "tmpfs", "-o", f"size={size},mode={mode}", "tmpfs", folder)
    try:
        yield
    finally:
        run(*there, "umount", "--lazy", folder)


@contextmanager
def full_shared_memory(lab: Deployed, node: Node, free_kib: int) -> Iterator[None]:
    """Has only so much of the node's /dev/shm left."""
    filler = f"{SHM}/filler"
    free = lab.podman.execute(node.name, "df", "--output=avail", "--block-size=1K", SHM).split()[-1]
    lab.podman.execute(node.name, "fallocate", "--length", f"{int(free) - free_kib}KiB", filler)
    try:
        yield
    finally:
        lab.podman.execute(node.name, "rm", filler)


@contextmanager
def damaged_file(lab: Deployed, node: Node, path: str) -> Iterator[None]:
    """Has one byte in the middle of a file of the node be another one; size and time of the file stay."""
    kept = f"/var/tmp/{Path(path).name}.whole"  # not beside it: a delivery removes what a model does not have
    lab.podman.execute(node.name, "cp", "--preserve", path, kept)
    try:
        lab.podman.execute(node.name, "python3", "-c", _DAMAGE, path)
        yield
    finally:
        lab.podman.execute(node.name, "mv", kept, path)


@contextmanager
def absent(lab: Deployed, node: Node, path: str) -> Iterator[None]:
    """Has a file or folder of the node be elsewhere."""
    lab.podman.execute(node.name, "mv", path, f"{path}.elsewhere")
    try:
        yield
    finally:
        lab.podman.execute(node.name, "mv", f"{path}.elsewhere", path)


@contextmanager
def clock_shifted(lab: Deployed, node: Node, shift: str) -> Iterator[None]:
    """Has every program that an ssh session starts on the node see another time of day (`+1h`).

    A container cannot have a clock of its own: the kernel's time namespaces leave the time of day alone. So libfaketime
    is loaded into what sessions start, which then sees what it would see of a clock that is wrong. Time that only
    counts up (CLOCK_MONOTONIC) is not touched, as on a real host.
    """
    lines = (f"LD_PRELOAD={_faketime(lab, node)}", f"FAKETIME={shift}", "FAKETIME_DONT_FAKE_MONOTONIC=1")
    lab.podman.execute(node.name, "touch", _SESSION_ENVIRONMENT)
    before = lab.podman.execute(node.name, "cat", _SESSION_ENVIRONMENT)
    try:
        _write(lab, node, _SESSION_ENVIRONMENT, before + "".join(f"{line}\n" for line in lines))
        yield
    finally:
        _write(lab, node, _SESSION_ENVIRONMENT, before)


def _write(lab: Deployed, node: Node, path: str, text: str) -> None:
    lab.podman.execute(node.name, "sh", "-c", 'printf %s "$2" > "$1"', "sh", path, text)


def _faketime(lab: Deployed, node: Node) -> str:
    """Returns the path of the library, installed if it is not there."""
    find = ("find", "/usr/lib", "-name", "libfaketimeMT.so.1")
    if not lab.podman.execute(node.name, *find).split():
        lab.podman.execute(node.name, "apt-get", "-q", "update", timeout_s=300)
        install = ("apt-get", "-q", "install", "-y", "--no-install-recommends", "libfaketime")
        lab.podman.execute(node.name, *install, timeout_s=300)
    return lab.podman.execute(node.name, *find).split()[0]


@contextmanager
def _dropping(lab: Deployed, node: Node, packets: str) -> Iterator[None]:
    """Has the node lose the packets that arrive for it and match."""
    chain = "chain input { type filter hook input priority 0; policy accept;"
    _nft(lab, node, f'table inet {_TABLE} {{ {chain} iifname "eth0" {packets} counter drop; }}; }}')
    try:
        yield
    finally:
        _nft(lab, node, f"delete table inet {_TABLE}")


def _nft(lab: Deployed, node: Node, rules: str) -> None:
    words = [*_in_network_of(lab, node), "nft", "--file", "-"]
    done = subprocess.run(words, input=rules, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise LabError(f"nft on {node.name}: {rules}\n{done.stderr.strip()}")


def _in_network_of(lab: Deployed, node: Node) -> list[str]:
    return ["nsenter", f"--target={_main_process(lab, node)}", "--net"]


def _main_process(lab: Deployed, node: Node) -> int:
    """Returns the id, on this machine, of the node's first process."""
    return int(lab.podman("inspect", "--format", "{{.State.Pid}}", node.name).stdout)


def _bridge_port(lab: Deployed, node: Node) -> str:
    """Returns the name, on this machine, of the other end of the node's link."""
    index = int(lab.podman.execute(node.name, "cat", "/sys/class/net/eth0/iflink"))
    links = json.loads(run("ip", "-json", "link", "show").stdout)
    return next(str(link["ifname"]) for link in links if link["ifindex"] == index)
