from __future__ import annotations

import pytest

from corebound.topology import read_topology
from corebound.topology.pod import read_pod
from corebound.topology.tree import Tree
from fixtures.topology_trees import write_machine

CGROUP = "sys/fs/cgroup"
AMBIGUOUS = "fewer than the node has, no limit on time: Guaranteed, or a Burstable pod beside pinned ones"
UID = "0f64b9e6-55f2-4d2c-9e3c-6a0b7f1f8a11"
MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
HOSTS = f"99 30 8:1 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts rw - ext4 /dev/sda1 rw"


def pod_of(root, *, path="/", cpus="1-2", quota="max", mounts=(MOUNT, HOSTS), environ=None):
    tree = write_machine("vm", root)
    base = root / CGROUP / path.strip("/")
    files = {
        root / "proc/self/mountinfo": "\n".join(mounts),
        root / "proc/self/cgroup": f"0::{path}",
        base / "cpuset.cpus.effective": cpus,
        base / "cpu.max": f"{quota} 100000",
    }
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return read_pod(Tree(tree), read_topology(tree), environ)


def test_a_pod_is_known_by_what_the_kubelet_mounts_even_in_an_ssh_session_without_its_environment(tmp_path):
    assert pod_of(tmp_path) is not None


def test_a_machine_without_the_kubelet_s_mounts_or_cgroups_is_no_pod(tmp_path):
    assert pod_of(tmp_path, mounts=(MOUNT,), path="/system.slice/docker-0.scope") is None


def test_the_environment_alone_names_a_pod_as_well(tmp_path):
    assert pod_of(tmp_path, mounts=(MOUNT,), environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is not None


@pytest.mark.parametrize(
    ("path", "quality"),
    [
        (f"/kubepods/pod{UID}/c0ffee", "Guaranteed"),
        (f"/kubepods/burstable/pod{UID}/c0ffee", "Burstable"),
        ("/kubepods.slice/kubepods-pod1.slice/cri-containerd-c0.scope", "Guaranteed"),
        ("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/c0.scope", "BestEffort"),
        ("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/c0.scope", "Burstable"),
        ("/", None),
    ],
)
def test_quality_of_service_is_read_from_the_cgroup_where_it_shows(tmp_path, path, quality):
    assert pod_of(tmp_path, path=path).quality == quality


@pytest.mark.parametrize(
    ("options", "own", "reason"),
    [
        ({"cpus": "1-2", "quota": "200000"}, True, "its limit of 2 CPUs is what is allowed"),
        (
            {"cpus": "1-2"},
            True,
            "fewer than the node has, no limit on time: Guaranteed, or a Burstable pod beside pinned ones",
        ),
        ({"cpus": "1-2", "path": "/kubepods/pod1/c0"}, True, "a Guaranteed pod"),
        ({"cpus": "1-2", "path": "/kubepods/burstable/pod1/c0"}, False, "Burstable pods get none of their own"),
        ({"cpus": "1-2", "quota": "150000"}, False, "its limit of 1.5 CPUs is not whole"),
        ({"cpus": "0-2", "quota": "200000"}, False, "a limit of 2, but 3 are allowed"),
        ({"cpus": "0-3"}, False, "all of the node's"),
        ({"cpus": "0-3", "quota": "400000"}, False, "all of the node's"),
    ],
)
def test_whether_cpus_are_a_pod_s_own_is_judged_by_limit_and_cpuset(tmp_path, options, own, reason):
    pod = pod_of(tmp_path, **options)
    assert (pod.own_cpus, pod.reason) == (own, reason)


def test_the_line_at_launch_counts_cpus_of_the_node(tmp_path):
    pod = pod_of(tmp_path, cpus="1-2", quota="150000")
    assert pod.describe(read_topology(tmp_path)) == (
        "2 of the node's 4 CPUs (1-2), shared with other pods (its limit of 1.5 CPUs is not whole)"
    )
