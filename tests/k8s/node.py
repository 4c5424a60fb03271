"""One node: containerd and a kubelet in network, mount and process namespaces of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from k8s.build import program
from k8s.layout import BRIDGE, DOMAIN, GATEWAY, PAUSE_IMAGE, ROOT, ClusterError, Layout, Node, nodes
from k8s.machine import CGROUPS, HIERARCHIES, run
from k8s.processes import log_end, start, wait_until

# Half a CPU stays with the system, so one whole CPU of two can be given away for good.
RESERVED_CPU = "500m"
CONTAINERD_TIMEOUT_S = 60.0


def make_bridge() -> None:
    """Makes the bridge between the nodes and this machine."""
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "replace", f"{GATEWAY}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def make_network(node: Node) -> None:
    """Makes the node's network namespace and its link, with the ways to the pods of the other nodes."""
    inside = ["ip", "-n", node.namespace]
    run("ip", "netns", "add", node.namespace)
    run("ip", "link", "add", node.link, "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
    run("ip", "link", "set", node.link, "master", BRIDGE, "up")
    run(*inside, "address", "add", f"{node.address}/24", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "link", "set", "lo", "up")
    run(*inside, "route", "add", "default", "via", GATEWAY)
    run("ip", "netns", "exec", node.namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for other in nodes(node.layout):
        if other != node:
            run(*inside, "route", "add", other.pods, "via", other.address)
    run("ip", "route", "replace", node.pods, "via", node.address)


def remove_networks(layout: Layout) -> None:
    """Removes bridge, links and namespaces, as far as they are there."""
    namespaces = [line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines() if line]
    for node in nodes(layout):
        if node.namespace in namespaces:
            run("ip", "netns", "delete", node.namespace)
        if Path("/sys/class/net", node.link).exists():
            # The namespace takes its end of the link with it, a moment later; whoever is second finds nothing.
            run("ip", "link", "delete", node.link, check=False)
    if Path("/sys/class/net", BRIDGE).exists():
        run("ip", "link", "delete", BRIDGE)


def make_cgroups(node: Node) -> None:
    """Makes the cgroup below which kubelet keeps its pods, in every hierarchy that they are in."""
    for hierarchy in HIERARCHIES:
        folder = CGROUPS / hierarchy
        for part in node.cgroup.split("/"):
            above, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            if hierarchy == "cpuset":
                # A new cpuset is empty, and nothing can run in it.
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (folder / name).write_text((above / name).read_text(encoding="utf-8"), encoding="utf-8")


def containerd_settings(node: Node) -> str:
    """Returns containerd's configuration; images outlive the cluster, all else goes with it."""
    layout = node.layout
    criterion = '"io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{node.images}"
state = "/run/containerd"

[grpc]
  address = "{node.socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{node.folder / "opt"}"

[plugins.{criterion}]
  sandbox_image = "{PAUSE_IMAGE}"
  # Where CAP_SYS_RESOURCE was taken away, nothing can be protected better from the kernel's killer than we are.
  restrict_oom_score_adj = true

[plugins.{criterion}.cni]
  bin_dir = "{layout.package_file("usr/lib/cni")}"
  conf_dir = "{node.folder / "cni"}"

[plugins.{criterion}.containerd]
  default_runtime_name = "runc"

[plugins.{criterion}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins.{criterion}.containerd.runtimes.runc.options]
  BinaryName = "{layout.package_file("usr/sbin/runc")}"
"""


def network_settings(node: Node) -> dict[str, object]:
    """Returns how pods are connected: one bridge in the node, addresses from the node's own range."""
    addresses = {"type": "host-local", "ranges": [[{"subnet": node.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "ipam": addresses}
    return {"cniVersion": "0.4.0", "name": "corebound", "plugins": [bridge]}


def kubelet_settings(node: Node) -> dict[str, object]:
    """Returns kubelet's configuration: pods of whole CPUs get CPUs of their own."""
    keys = node.layout.keys
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "tlsCertFile": str(keys / f"{node.name}.crt"),
        "tlsPrivateKeyFile": str(keys / f"{node.name}.key"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(keys / "authority.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.control_group_root,
        "clusterDNS": [GATEWAY],
        "clusterDomain": DOMAIN,
        "resolvConf": str(node.folder / "resolv.conf"),
        "failSwapOn": False,
        "oomScoreAdj": 0,
        # A volume in memory is no larger than its limit; without a gate from 1.22 on.
        "featureGates": {"SizeMemoryBackedVolumes": True},
        "cpuManagerPolicy": "static",
        "systemReserved": {"cpu": RESERVED_CPU, "memory": "256Mi"},
        # The disk is shared with everything else on this machine; its state is not the pods' affair.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "volumePluginDir": str(node.folder / "plugins"),
        # Sooner than by default, so that a test sees a node's state while it waits.
        "nodeStatusUpdateFrequency": "2s",
        "syncFrequency": "10s",
    }


def write_settings(node: Node) -> None:
    """Writes what containerd and kubelet read."""
    for name in ("cni", "kubelet", "varlog", "settings"):
        (node.folder / name).mkdir(parents=True, exist_ok=True)
    node.images.mkdir(parents=True, exist_ok=True)
    (node.folder / "containerd.toml").write_text(containerd_settings(node), encoding="utf-8")
    (node.folder / "cni/10-corebound.conflist").write_text(json.dumps(network_settings(node)), encoding="utf-8")
    (node.folder / "kubelet.json").write_text(json.dumps(kubelet_settings(node)), encoding="utf-8")
    (node.folder / "resolv.conf").write_text(f"nameserver {GATEWAY}\n", encoding="utf-8")


def start_node(node: Node) -> subprocess.Popen[bytes]:
    """Starts the node and returns its first process, whose end is the end of all others on it."""
    make_network(node)
    make_cgroups(node)
    write_settings(node)
    enter = ["nsenter", f"--net=/run/netns/{node.namespace}"]
    apart = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    search = {"PYTHONPATH": str(ROOT / "tests"), "COREBOUND_K8S_DIR": str(node.layout.home)}
    words = [*enter, *apart, sys.executable, "-m", "k8s.node_init", str(node.number)]
    return start(node.layout, node.name, *words, env=search)


def control(node: Node, *words: str | Path, timeout_s: float = 120, check: bool = True) -> str:
    """Returns the output of containerd's own command on the node."""
    program_file = node.layout.package_file("usr/bin/ctr")
    return run(
        program_file, "--address", node.socket, "--namespace", "k8s.io", *words, timeout_s=timeout_s, check=check
    ).stdout


def wait_for_containerd(node: Node, process: subprocess.Popen[bytes]) -> None:
    """Returns when the node's containerd answers."""

    def answers() -> bool:
        if process.poll() is not None:
            raise ClusterError(f"{node.name} has ended; the end of its log:\n{log_end(node.layout, node.name)}")
        return node.socket.exists() and bool(control(node, "version", check=False))

    wait_until(answers, f"containerd of {node.name} answers", CONTAINERD_TIMEOUT_S, hint=f"logs: {node.layout.logs}")


def start_kubelet(node: Node) -> None:
    """Lets the node's first process start kubelet, now that images are there."""
    (node.folder / "start-kubelet").touch()


def kubelet_words(node: Node) -> list[str]:
    """Returns kubelet's command line."""
    layout = node.layout
    return [
        str(program(layout, "kubelet")),
        f"--config={node.folder / 'kubelet.json'}",
        f"--kubeconfig={layout.run / node.name}.kubeconfig",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        f"--cert-dir={node.folder / 'certificates'}",
        "--container-runtime=remote",
        f"--container-runtime-endpoint=unix://{node.socket}",
        "--v=2",
    ]


def forget(layout: Layout) -> None:
    """Removes what belonged to one life of the cluster."""
    shutil.rmtree(layout.run, ignore_errors=False)
