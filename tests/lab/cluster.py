"""Puts the lab's nodes up and takes them down, whatever an earlier lab left behind."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab import access, machine
from lab.image import node_image
from lab.layout import INVENTORY, LABEL, MAX_NODES, NETWORK, SUBNET, LabError, Layout, Node, nodes
from lab.podman import Podman

READY_TIMEOUT_S = 30.0
SHM_SIZE = "512m"
CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
# What a bare host's root may do and a container's may not: its network, priorities and NUMA memory, and debugging.
CAPABILITIES = "NET_ADMIN,NET_RAW,SYS_NICE,SYS_PTRACE,AUDIT_WRITE"


@contextlib.contextmanager
def only_one(layout: Layout) -> Iterator[None]:
    """Lets one process at a time put the lab up or down; another checkout on this machine shares the same nodes."""
    layout.home.mkdir(parents=True, exist_ok=True)
    with layout.lock.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def accepts_ssh(node: Node, timeout_s: float) -> bool:
    """Returns whether a server that speaks ssh answers at the node's address within the time."""
    try:
        with socket.create_connection((node.address, 22), timeout=timeout_s) as connection:
            connection.settimeout(timeout_s)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def start_node(podman: Podman, node: Node, image: str, mark: str, volumes: Sequence[str]) -> None:
    """Starts one node. Every name that a lab can have is known to it, so that adding a node changes no other."""
    words = ["run", "--detach", "--name", node.name, "--hostname", node.name, "--label", f"{LABEL}={mark}"]
    words += ["--systemd=always", "--network", NETWORK, "--ip", node.address, "--mac-address", node.hardware_address]
    words += ["--shm-size", SHM_SIZE]
    words += ["--cap-add", CAPABILITIES, *volumes]
    words += [f"--add-host={other.name}:{other.address}" for other in nodes(MAX_NODES)]
    words.append(f"--volume={podman.layout.key}.pub:/home/admin/.ssh/authorized_keys:ro")
    podman(*words, image)


def wait_for(members: Sequence[Node]) -> None:
    """Returns when every node answers; raises with the names of those that do not."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    waiting = list(members)
    while waiting and time.monotonic() < deadline:
        waiting = [node for node in waiting if not accepts_ssh(node, timeout_s=1.0)]
        if waiting:
            time.sleep(0.05)
    if waiting:
        names = ", ".join(node.name for node in waiting)
        hint = f"its journal: PYTHONPATH=tests python -m lab podman exec {waiting[0].name} journalctl --no-pager"
        raise LabError(f"no sshd on {names} within {READY_TIMEOUT_S:.0f} s", hint=hint)


def share_processors(podman: Podman, members: Sequence[Node]) -> None:
    """Puts the nodes' processes into one control group for processor time, where version 1 of cgroups keeps that apart.

    Every node has the same processors, and Linux 6.18 lets a rank of one node that polls, as oneCCL does while it makes
    a communicator, keep those of another node from running for tens of seconds if each node is a group of its own.
    """
    for node in members:
        main = int(podman("inspect", "--format", "{{.State.Pid}}", node.name).stdout)
        groups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{main}/cgroup").read_text("utf-8").splitlines())
        if "cpu" not in groups:
            continue
        own = CPU_GROUPS / groups["cpu"].lstrip("/")
        # Children start in the group of their parent, so a few rounds find the last.
        while own.parent != CPU_GROUPS and (processes := (own / "cgroup.procs").read_text("ascii").split()):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    (own.parent / "cgroup.procs").write_text(process, "ascii")


def start_again(podman: Podman, members: Sequence[Node]) -> None:
    """Boots nodes that were ended, and returns when they answer."""
    podman("start", *(node.name for node in members))
    wait_for(members)
    share_processors(podman, members)


def usable(podman: Podman, mark: str) -> set[str]:
    """Returns the nodes that were started this way and answer; podman's own word is not enough after a crash."""
    listed = podman("ps", "--filter", f"label={LABEL}={mark}", "--format", "{{.Names}}").stdout.split()
    return {node.name for node in nodes(MAX_NODES) if node.name in listed and accepts_ssh(node, timeout_s=2.0)}


def remove_nodes(podman: Podman, names: Sequence[str]) -> None:
    """Removes nodes. The first attempt fails for one that was killed behind podman's back, the second does not."""
    namespaces: set[str] = set()
    for _ in range(3):
        there = [name for name in podman.containers("--all") if name in names]
        if not there:
            break
        shown = podman("inspect", "--format", "{{.NetworkSettings.SandboxKey}}", *there, check=False)
        namespaces.update(Path(line).name for line in shown.stdout.split())
        podman("rm", "--force", "--time", "0", *there, check=False)
    left = [name for name in podman.containers("--all") if name in names]
    if left:
        raise LabError(f"cannot remove {', '.join(left)}: {podman('rm', '--force', *left, check=False).stderr.strip()}")
    for name in namespaces:
        if Path("/run/netns", name).exists():
            machine.run("ip", "netns", "delete", name, check=False)


def make_network(podman: Podman) -> None:
    """Makes the lab's bridge; names come from each node's hosts file, so no name server is left to clean up."""
    if podman("network", "exists", NETWORK, check=False).returncode != 0:
        podman("network", "create", "--subnet", SUBNET, "--disable-dns", "--label", LABEL, NETWORK)


def up(layout: Layout, num_nodes: int, base_image: str, *, bare: bool = False) -> tuple[list[Node], float]:
    """Makes the lab have exactly so many nodes and returns them, and how many seconds that took without the image.

    On a `bare` node pip is told nothing of this machine's package sources, and none of its files are mounted.
    """
    if not 1 <= num_nodes <= MAX_NODES:
        raise LabError(f"NODES is {num_nodes}, expected 1 to {MAX_NODES}")
    machine.install_packages()
    with only_one(layout):
        machine.guard_subnet()
        machine.remember(layout)
        podman = Podman(layout)
        podman.configure()
        access.make_key(layout)
        image = node_image(podman, base_image)
        started = time.monotonic()
        members, settings = nodes(num_nodes), None if bare else access.pip_settings()
        mark = f"{image}-bare" if bare else image
        good = usable(podman, mark) & {node.name for node in members}
        if not good:
            take_down(podman)
        make_network(podman)
        remove_nodes(podman, [name for name in podman.containers("--all") if name not in good])
        for node in members:
            if node.name not in good:
                start_node(podman, node, image, mark, [] if settings is None else access.mounts(settings))
        wait_for(members)
        share_processors(podman, members)
        access.write_known_hosts(podman, members)
        access.write_ssh_config(layout, members)
        access.write_inventory(layout, members, settings)
        return members, time.monotonic() - started


def take_down(podman: Podman) -> None:
    """Removes nodes and network, also those of a lab whose processes were killed."""
    access.close_connections(podman.layout)
    remove_nodes(podman, podman.containers("--all"))
    # Also one that an older checkout made under another name: two cannot have the same addresses.
    for network in podman("network", "ls", "--filter", f"label={LABEL}", "--format", "{{.Name}}").stdout.split():
        podman("network", "rm", "--force", network, check=False)
    machine.remove_bridge()
    # Addresses of nodes that died without giving theirs back.
    for database in podman.layout.store.rglob("ipam.db"):
        database.unlink()


def down(layout: Layout, *, purge: bool) -> None:
    """Takes the lab down and puts the machine back; the built images stay for the next time unless `purge`."""
    if layout.home.exists():
        with only_one(layout):
            if layout.containers_conf.exists() and not machine.missing_packages():
                podman = Podman(layout)
                take_down(podman)
                unmount(layout)
            machine.restore(layout)
            if purge:
                shutil.rmtree(layout.home)
    INVENTORY.unlink(missing_ok=True)


def unmount(layout: Layout) -> None:
    """Unmounts what podman mounted below the lab's folder, innermost first."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    points = [line.split()[1] for line in lines if line.split()[1].startswith(f"{layout.store}/")]
    for point in reversed(points):
        machine.run("umount", point)
