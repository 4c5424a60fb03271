"""The launch that runs as a service on the lab: its unit on the first node and its ranks on each."""

from __future__ import annotations

from lab.podman import Podman

UNIT = "corebound-inference.service"
JOURNAL = ("journalctl", "--unit", UNIT, "--no-pager", "--output", "cat")


def ranks(podman: Podman, name: str) -> list[str]:
    """Returns the process ids of the service's ranks on a node."""
    listed = podman("exec", name, "pgrep", "--full", "long_running.py$", check=False).stdout.split()
    return [pid for pid in listed if "COREBOUND_JOB_ID" in podman.execute(name, "cat", f"/proc/{pid}/environ")]


def main_pid(podman: Podman) -> str:
    """Returns the process id of the service's launcher."""
    return podman.execute("node1", "systemctl", "show", "--property=MainPID", "--value", UNIT).strip()
