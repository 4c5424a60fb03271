"""What a node has: packages, files and units, to be compared with what it had before."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lab.podman import Podman

# Ansible's own folder for its scripts, what dpkg writes with any package, Python's caches, and files of the moment.
NOT_OURS = re.compile(
    r"^/(proc|sys|dev|run|tmp|var/(log|cache|tmp|lib/(apt|dpkg|systemd))|root/\.ansible|home/admin/\.ansible)(/|$)"
    r"|__pycache__|^/etc/(ld\.so\.cache|passwd-|group-|shadow-|gshadow-|subuid-|subgid-)$|/\.sudo_as_admin_successful$"
)


@dataclass(frozen=True)
class State:
    """Packages and files of a node."""

    packages: set[str]
    files: set[str]


def look_at(podman: Podman, name: str) -> State:
    """Returns packages and file tree of a node: names, kinds, sizes, owners, modes and where links point."""
    packages = podman.execute(name, "dpkg-query", "--show", "--showformat", "${Package}\\n").split()
    found = podman.execute(name, "find", "/", "-xdev", "-not", "-type", "d", "-printf", "%p\t%y %s %u %m %l\\n")
    folders = podman.execute(name, "find", "/", "-xdev", "-type", "d", "-printf", "%p\t%y %u %m\\n")
    lines = (found + folders).splitlines()
    return State(set(packages), {line for line in lines if not NOT_OURS.search(line.partition("\t")[0])})


def unit_state(podman: Podman, unit: str, name: str = "node1") -> tuple[str, str]:
    """Returns whether a unit is active, and whether it is enabled."""
    shown = podman.execute(name, "systemctl", "show", "--property=ActiveState,UnitFileState", unit)
    values = dict(line.partition("=")[::2] for line in shown.splitlines())
    return values["ActiveState"], values["UnitFileState"]
