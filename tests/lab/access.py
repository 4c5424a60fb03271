"""How the lab's nodes are reached: keys, known_hosts, an ssh configuration and an inventory like any other."""

from __future__ import annotations

import subprocess
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lab.layout import ADMIN, INVENTORY, Layout, Node
from lab.machine import run
from lab.podman import Podman

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
CA_ON_NODE = "/etc/lab/ca.crt"
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"


def make_key(layout: Layout) -> None:
    """Makes the administrator's key pair, for this lab only."""
    if not layout.key.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "corebound-lab", "-f", layout.key)


def write_known_hosts(podman: Podman, members: Sequence[Node]) -> None:
    """Writes the nodes' host keys, asked of each node from inside, so that no first contact has to be trusted."""
    keys = {node: podman.execute(node.name, "cat", HOST_KEY).split()[:2] for node in members}
    lines = [f"{node.name},{node.address} {' '.join(key)}\n" for node, key in keys.items()]
    podman.layout.known_hosts.write_text("".join(lines), encoding="utf-8")


def write_ssh_config(layout: Layout, members: Sequence[Node]) -> None:
    """Writes what `ssh -F`, Ansible and fabric need to reach the nodes."""
    text = "".join(f"Host {node.name} {node.address}\n    HostName {node.address}\n" for node in members)
    text += f"""Host *
    User {ADMIN}
    IdentityFile {layout.key}
    IdentitiesOnly yes
    UserKnownHostsFile {layout.known_hosts}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""
    layout.ssh_config.write_text(text, encoding="utf-8")


def pip_settings() -> dict[str, str]:
    """Returns pip's settings on this machine: the longer name -> value, environment before files."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=True
    )
    settings: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in {"global", "install", ":env:"}:
            settings[key] = value.strip("'\"").replace("\\n", " ")
    return settings


def local_folders(settings: Mapping[str, str]) -> list[Path]:
    """Returns the folders of this machine that pip's settings name; an index has its files beside itself."""
    folders: list[Path] = []
    for key in ("find-links", "index-url", "extra-index-url"):
        for word in settings.get(key, "").split():
            path = Path(urllib.parse.unquote(urllib.parse.urlparse(word).path) if word.startswith("file:") else word)
            if path.is_absolute() and path.is_dir():
                folders.append(path.parent if path.name == "simple" else path)
    return list(dict.fromkeys(folders))


def mounts(settings: Mapping[str, str]) -> list[str]:
    """Returns podman's options that let a node read what pip on this machine reads: certificates and local wheels."""
    options = [f"--volume={folder}:{folder}:ro" for folder in local_folders(settings)]
    bundle = Path(settings.get("cert", "") or CA_BUNDLE)
    return options + ([f"--volume={bundle}:{CA_ON_NODE}:ro"] if bundle.is_file() else [])


def pip_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment in which pip on a node finds what pip on this machine finds."""
    environ = {f"PIP_{key.replace('-', '_').upper()}": settings[key] for key in settings if key != "cert"}
    bundle = Path(settings.get("cert", "") or CA_BUNDLE)
    return environ | ({"PIP_CERT": CA_ON_NODE} if bundle.is_file() else {})


def write_inventory(layout: Layout, members: Sequence[Node], settings: Mapping[str, str] | None) -> None:
    """Writes inventories/lab/hosts.yml; without settings, pip on the nodes has none."""
    variables: dict[str, Any] = {
        "ansible_user": ADMIN,
        "ansible_ssh_private_key_file": str(layout.key),
        "ansible_ssh_common_args": f"-F {layout.ssh_config}",
        "ansible_control_path_dir": str(layout.control_sockets),
        "cluster_tests_ssh_config": str(layout.ssh_config),
    }
    if settings is not None:
        variables["runtime_pip_environment"] = pip_environment(settings)
    hosts = {node.name: {"ansible_host": node.address} for node in members}
    groups = {"nodes": {"hosts": hosts, "vars": variables}, "cluster_ssh": {"children": {"nodes": {}}}}
    text = yaml.safe_dump({"all": {"children": groups}}, sort_keys=False)
    INVENTORY.write_text(f"# Written by `make lab-up`, removed by `make lab-down`.\n{text}", encoding="utf-8")


def close_connections(layout: Layout) -> None:
    """Ends the ssh connections that Ansible keeps open for its next task."""
    if layout.control_sockets.is_dir():
        for socket in layout.control_sockets.iterdir():
            run("ssh", "-S", socket, "-O", "exit", "lab", check=False)
            socket.unlink(missing_ok=True)
