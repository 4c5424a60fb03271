"""Podman with folders and settings of its own: the machine's podman, if there is one in use, is not touched."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

from lab.layout import LABEL, LabError, Layout

# Podman lowers its own limit to this before it asks for the container's; asking for more then fails where the machine
# has taken CAP_SYS_RESOURCE away.
MAX_PROCESSES = 32768
CGROUP_V2 = Path("/sys/fs/cgroup/cgroup.controllers")


def containers_conf(max_open_files: int, max_processes: int, *, cgroup_v2: bool) -> str:
    """Returns podman's settings for a machine with these hard limits.

    crun refuses a machine on which both versions of cgroups hold controllers; runc does not.
    """
    processes = MAX_PROCESSES if max_processes == resource.RLIM_INFINITY else min(max_processes, MAX_PROCESSES)
    return f"""\
[containers]
default_ulimits = ["nofile={max_open_files}:{max_open_files}", "nproc={processes}:{processes}"]
log_driver = "k8s-file"

[engine]
runtime = "{"crun" if cgroup_v2 else "runc"}"
cgroup_manager = "cgroupfs"
events_logger = "file"

[network]
network_backend = "netavark"
"""


class Podman:
    """Runs podman on the lab's own store."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        store = layout.store
        self.words = ["podman", "--root", str(store / "root"), "--runroot", str(store / "run")]
        self.words += ["--tmpdir", str(store / "tmp"), "--network-config-dir", str(store / "networks")]

    def configure(self) -> None:
        """Writes the settings, from this machine's limits."""
        self.layout.store.mkdir(parents=True, exist_ok=True)
        text = containers_conf(
            resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            resource.getrlimit(resource.RLIMIT_NPROC)[1],
            cgroup_v2=CGROUP_V2.exists(),
        )
        self.layout.containers_conf.write_text(text, encoding="utf-8")

    def __call__(self, *words: str, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Returns what a podman command came to; raises with its own words when it fails."""
        done = subprocess.run(
            [*self.words, *words],
            env={**os.environ, "CONTAINERS_CONF": str(self.layout.containers_conf)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise LabError(f"podman {' '.join(words)}: exit code {done.returncode}\n{done.stderr.strip()}")
        return done

    def containers(self, *options: str) -> list[str]:
        """Returns the names of the lab's containers that podman believes to run; with `--all` those that do not too."""
        listed = self("ps", "--filter", f"label={LABEL}", "--format", "{{.Names}}", *options)
        return sorted(listed.stdout.split())

    def execute(self, name: str, *words: str, timeout_s: float = 60) -> str:
        """Returns the standard output of a command inside a node."""
        return self("exec", name, *words, timeout_s=timeout_s).stdout
