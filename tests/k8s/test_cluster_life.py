"""The test cluster itself: it leaves nothing behind, and comes up again whatever was killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from k8s import cluster, processes
from k8s.access import Access
from k8s.layout import CGROUP, GATEWAY, POD_NETWORK, Layout, nodes
from k8s.machine import CGROUPS, run
from k8s.node_init import SETTINGS

pytestmark = [pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(900)]


def kernel_settings() -> dict[str, str]:
    """Returns what a kubelet would set for the whole machine."""
    paths = (Path("/proc/sys", name) for name in (*SETTINGS, "net/ipv4/ip_forward"))
    return {str(path): path.read_text(encoding="utf-8").strip() for path in paths if path.exists()}


def left(layout: Layout) -> list[str]:
    """Returns what of a cluster is on this machine; other things come and go meanwhile and are not counted."""
    found = [f"cgroup {path}" for path in CGROUPS.glob(f"*/{CGROUP}")]
    links = run("ip", "-brief", "link", "show").stdout.splitlines()
    found += [f"link {line}" for line in links if line.startswith((CGROUP, "cbk8s", "cni0"))]
    parts = [
        GATEWAY.rpartition(".")[0] + ".",
        POD_NETWORK.rpartition(".")[0] + ".",
        *(node.pods for node in nodes(layout)),
    ]
    found += [
        f"route {line}" for line in run("ip", "route", "show").stdout.splitlines() if line.startswith(tuple(parts))
    ]
    found += [f"namespace {line}" for line in run("ip", "netns", "list").stdout.splitlines() if CGROUP in line]
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    found += [f"mount {line}" for line in mounts if str(layout.home) in line]
    found += [f"process {number}" for number in processes.running()]
    return found + ([f"folder {layout.run}"] if layout.run.exists() else [])


def folders() -> set[str]:
    """Returns which of the folders are there that containerd and kubelet make for themselves if nobody stops them."""
    paths = ("/var/lib/kubelet", "/var/lib/cni", "/run/containerd", "/opt/containerd", "/usr/libexec/kubernetes")
    return {path for path in paths if Path(path).exists()}


def test_a_cluster_leaves_nothing_behind_but_programs_and_images(access: Access) -> None:
    place = access.layout
    cluster.down(place)
    settings, before = kernel_settings(), folders()
    try:
        assert left(place) == []
        cluster.up(place)
        assert left(place)
        assert kernel_settings() == settings
        assert folders() <= before
        cluster.down(place)
        assert left(place) == []
        assert kernel_settings() == settings
        # Nothing to take down is no error.
        cluster.down(place)
    finally:
        cluster.up(place)


@pytest.mark.parametrize("victim", ["kube-scheduler", "node1", "kubelet of node2"])
def test_a_cluster_of_which_a_process_was_killed_comes_up_again(access: Access, victim: str) -> None:
    place = access.layout
    name, _, node = victim.partition(" of ")
    if node:
        words = f"--hostname-override={node}"
        (number,) = [pid for pid in processes.running() if words in Path(f"/proc/{pid}/cmdline").read_text("utf-8")]
    else:
        number = int((place.run / f"{name}.pid").read_text(encoding="utf-8"))
    os.kill(number, signal.SIGKILL)
    processes.wait_until(lambda: processes.ended(place) == [node or name], "its end is noticed", 30)
    assert not cluster.is_up(place)

    cluster.up(place)

    assert cluster.is_up(place)
    assert access.num_ready_nodes() == len(nodes(place))
