"""Where the test cluster keeps what it makes, and its names and addresses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# One number for each of the nodes; both see all CPUs of this machine.
NODE_NUMBERS = (1, 2)
SUBNET = "10.89.60.0/24"
GATEWAY = "10.89.60.1"
POD_NETWORK = "10.89.64.0/22"
SERVICE_NETWORK = "10.89.68.0/24"
# The first of them belongs to the service `kubernetes`.
SERVICE_ADDRESS = "10.89.68.1"
DOMAIN = "cluster.local"
BRIDGE = "corebound-k8s"
API_PORT = 16443
ETCD_PORT = 23790
ETCD_PEER_PORT = 23800
CONTROLLER_PORT = 16257
SCHEDULER_PORT = 16259
# Every process of the cluster is started in this cgroup or below it, and so found again whatever became of its parent.
CGROUP = "corebound-k8s"
PAUSE_IMAGE = "localhost/corebound-k8s/pause:3.2"


class ClusterError(Exception):
    """Something about this machine keeps the cluster from running; the text says what, `hint` what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Layout:
    """The folders and files of the test cluster, all below one folder outside the repository."""

    home: Path

    @property
    def programs(self) -> Path:
        """The compiled programs of Kubernetes."""
        return self.home / "bin"

    @property
    def packages(self) -> Path:
        """The unpacked Debian packages: compiler, etcd, containerd, runc, network plugins, kubectl."""
        return self.home / "root"

    @property
    def run(self) -> Path:
        """What belongs to one life of the cluster: keys, logs, the database."""
        return self.home / "run"

    @property
    def logs(self) -> Path:
        """One log a process."""
        return self.run / "logs"

    @property
    def keys(self) -> Path:
        """Certificates and keys."""
        return self.run / "keys"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's access to the cluster."""
        return self.run / "admin.kubeconfig"

    @property
    def lock(self) -> Path:
        """Held while the cluster is put up or taken down."""
        return self.home / "lock"

    @property
    def in_use(self) -> Path:
        """Held by the tests that use the cluster."""
        return self.home / "in-use"

    def package_file(self, name: str) -> Path:
        """Returns a file of the unpacked packages, such as `usr/bin/etcd`."""
        return self.packages / name


@dataclass(frozen=True)
class Node:
    """One node: network and mount namespaces, a cgroup and folders of its own."""

    number: int
    layout: Layout

    @property
    def name(self) -> str:
        """The name that Kubernetes knows it by."""
        return f"node{self.number}"

    @property
    def address(self) -> str:
        """Its address on the bridge."""
        return f"{GATEWAY.rpartition('.')[0]}.{10 + self.number}"

    @property
    def pods(self) -> str:
        """The addresses of its pods."""
        first, second, third = POD_NETWORK.split(".")[:3]
        return f"{first}.{second}.{int(third) + self.number}.0/24"

    @property
    def namespace(self) -> str:
        """Its network namespace."""
        return f"corebound-k8s-{self.name}"

    @property
    def link(self) -> str:
        """This machine's end of its network link; at most 15 characters."""
        return f"cbk8s-{self.name}"

    @property
    def cgroup(self) -> str:
        """The cgroup below which its processes and pods live, in every hierarchy."""
        return f"{CGROUP}/{self.name}"

    @property
    def folder(self) -> Path:
        """What belongs to one life of the node."""
        return self.layout.run / self.name

    @property
    def control_group_root(self) -> str:
        """The same as kubelet wants it."""
        return f"/{self.cgroup}"

    @property
    def images(self) -> Path:
        """containerd's store, which outlives the cluster, so that an image is unpacked once."""
        return self.layout.home / "images" / self.name

    @property
    def socket(self) -> Path:
        """containerd's socket."""
        return self.folder / "containerd.sock"


def layout() -> Layout:
    """Returns the cluster's place: COREBOUND_K8S_DIR, or corebound-k8s in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Layout(Path(os.environ.get("COREBOUND_K8S_DIR") or cache / "corebound-k8s"))


def nodes(place: Layout) -> list[Node]:
    """Returns the nodes of the cluster."""
    return [Node(number, place) for number in NODE_NUMBERS]
