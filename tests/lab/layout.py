"""Where the lab keeps what it makes, and the names and addresses of its nodes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories/lab/hosts.yml"
# Several labs can be up at once, one for each checkout that tests: COREBOUND_LAB_NUMBER gives each its own addresses.
NUMBER = int(os.environ.get("COREBOUND_LAB_NUMBER") or 0)
SUBNET = f"10.89.{77 + NUMBER}.0/24"
GATEWAY = f"10.89.{77 + NUMBER}.1"
# Podman names firewall chains after the network: two labs must not share them.
NETWORK = f"corebound-lab-{NUMBER}" if NUMBER else "corebound-lab"
LABEL = "corebound.lab"
ADMIN = "admin"
MAX_NODES = 9


class LabError(Exception):
    """Something about this machine keeps the lab from running; the text says what, `hint` what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Node:
    """One host of the lab."""

    name: str
    address: str

    @property
    def hardware_address(self) -> str:
        """The address of its network card. It outlives a restart, as a real card's does: neighbours remember it."""
        return ":".join(["02", "42", *(f"{int(number):02x}" for number in self.address.split("."))])


def node(number: int) -> Node:
    """Returns the node of that number, counted from 1."""
    return Node(f"node{number}", GATEWAY[: GATEWAY.rindex(".") + 1] + str(10 + number))


def nodes(num_nodes: int) -> list[Node]:
    """Returns the first so many nodes."""
    return [node(number) for number in range(1, num_nodes + 1)]


@dataclass(frozen=True)
class Layout:
    """The folders and files of the lab, all below one folder outside the repository."""

    home: Path

    @property
    def store(self) -> Path:
        """Podman's own folders, so that the machine's podman knows nothing of the lab."""
        return self.home / "podman"

    @property
    def containers_conf(self) -> Path:
        """Podman's settings."""
        return self.home / "containers.conf"

    @property
    def key(self) -> Path:
        """The administrator's private key."""
        return self.home / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The nodes' host keys."""
        return self.home / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """What `ssh -F` needs to reach a node by name or address."""
        return self.home / "ssh_config"

    @property
    def control_sockets(self) -> Path:
        """The sockets of Ansible's open connections."""
        return self.home / "cp"

    @property
    def machine_state(self) -> Path:
        """What the machine looked like before the first of its labs, to be put back after the last."""
        return self.home.parent / "corebound-lab-machine.json"

    @property
    def lock(self) -> Path:
        """Held while the lab is put up or taken down."""
        return self.home / "lock"


def layout() -> Layout:
    """Returns the lab's place: COREBOUND_LAB_DIR, or corebound-lab (-1, -2, ...) in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"corebound-lab-{NUMBER}" if NUMBER else "corebound-lab"
    return Layout(Path(os.environ.get("COREBOUND_LAB_DIR") or cache / name))
