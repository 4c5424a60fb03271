"""The first process of a node: gives it folders of its own, starts containerd and kubelet, and ends with them.

Started by k8s.node in namespaces of the node's own. When it ends, the kernel ends every process of the node, and all
mounts go with the last of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from k8s.layout import Node, layout
from k8s.node import control, kubelet_words

# What kubelet sets for the whole machine: it gets copies.
SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def mount(*words: str | Path) -> None:
    """Mounts something in the node's own mount namespace."""
    subprocess.run(["mount", *(str(word) for word in words)], check=True)


def make_folders(node: Node) -> None:
    """Puts folders of the node's own over those that containerd and kubelet write to."""
    for name in SETTINGS:
        path = Path("/proc/sys", name)
        if path.exists():
            copy = node.folder / "settings" / path.name
            copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
            mount("--bind", copy, path)
    for folder in ("/run", "/var/lib"):
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
    for folder in ("/run/netns", "/run/lock", "/var/lib/cni", "/var/lib/kubelet"):
        Path(folder).mkdir()
    mount("--bind", node.folder / "kubelet", "/var/lib/kubelet")
    mount("--bind", node.folder / "varlog", "/var/log")
    # kubelet wants mounts of pods to be seen by whoever shares its view.
    mount("--make-rshared", "/")


def remove_containers(node: Node) -> None:
    """Removes what an earlier life of the cluster left in containerd's database; images stay."""
    left = control(node, "containers", "list", "--quiet").split()
    if left:
        control(node, "containers", "delete", *left)


def start(node: Node, name: str, words: list[str]) -> subprocess.Popen[bytes]:
    """Starts one of the node's two daemons with a log of its own."""
    places = [node.layout.package_file(part) for part in ("usr/bin", "usr/sbin")]
    environ = {**os.environ, "PATH": ":".join([*map(str, places), os.environ["PATH"]])}
    with (node.layout.logs / f"{node.name}-{name}.log").open("ab") as log:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)


def supervise(node: Node, daemons: dict[int, str]) -> int:
    """Returns when a daemon has ended; also takes the ends of processes whose parents are gone."""
    while True:
        ended, status = os.wait()
        if ended in daemons:
            code = os.waitstatus_to_exitcode(status)
            print(f"{node.name}: {daemons[ended]} has ended with exit code {code}", file=sys.stderr)
            return 1


def main() -> int:
    """Runs the node."""
    node = Node(int(sys.argv[1]), layout())
    make_folders(node)
    settings = str(node.folder / "containerd.toml")
    containerd = start(node, "containerd", [str(node.layout.package_file("usr/bin/containerd")), "--config", settings])
    asked = node.folder / "start-kubelet"
    cleaned = False
    while not asked.exists():
        if containerd.poll() is not None:
            print(f"{node.name}: containerd has ended with exit code {containerd.returncode}", file=sys.stderr)
            return 1
        if not cleaned and node.socket.exists() and control(node, "version", check=False):
            remove_containers(node)
            cleaned = True
        time.sleep(0.1)
    kubelet = start(node, "kubelet", kubelet_words(node))
    return supervise(node, {containerd.pid: "containerd", kubelet.pid: "kubelet"})


if __name__ == "__main__":
    sys.exit(main())
