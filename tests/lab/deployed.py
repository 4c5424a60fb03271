"""A lab with Corebound on it, and running commands there as the user of the jobs does."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.layout import LabError, Layout, Node
from lab.podman import Podman

JOB_USER = "corebound"
PREFIX = "/opt/corebound"
COMMAND = f"{PREFIX}/venv/bin/corebound"
HOSTFILE = f"{PREFIX}/etc/hostfile"
MODEL = f"{PREFIX}/models/demo"


@dataclass(frozen=True)
class Deployed:
    """The deployed nodes, how to reach them, and what the smoke run at the end of the deployment reported."""

    place: Layout
    podman: Podman
    nodes: list[Node]
    inventory: Path
    variables: Mapping[str, Any]
    first_report: dict[str, Any] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Returns the report of the last smoke run."""
        path = Path(self.variables["corebound_reports_dir"], "smoke.json")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def words(self, name: str, *command: str, user: str = JOB_USER, **environ: str) -> list[str]:
        """Returns the command line that runs a command on a node, as a user with that user's own environment."""
        assignments = [f"{key}={value}" for key, value in environ.items()]
        inside = shlex.join(["env", *assignments, *command] if assignments else list(command))
        script = f"cd && exec {inside}"
        words = ["exec", name, "runuser", "--login", user, "--command", script]
        return ["env", f"CONTAINERS_CONF={self.place.containers_conf}", *self.podman.words, *words]

    def run(
        self, name: str, *command: str, user: str = JOB_USER, timeout_s: float = 120, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Returns what a command on a node came to; a command that takes longer than the time is a failure."""
        return subprocess.run(
            self.words(name, *command, user=user, **environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, name: str, *command: str, user: str = JOB_USER, **environ: str) -> subprocess.Popen[str]:
        """Starts a command on a node, with pipes for its output."""
        return subprocess.Popen(
            self.words(name, *command, user=user, **environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, name: str, path: str, text: str, user: str = JOB_USER) -> None:
        """Writes a file on a node; its content is on no command line."""
        words = [*self.podman.words, "exec", "--interactive", "--user", user, name, "sh", "-c", f"cat > {path}"]
        done = subprocess.run(
            ["env", f"CONTAINERS_CONF={self.place.containers_conf}", *words],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise LabError(f"{path} cannot be written on {name}: {done.stderr.strip()}")
