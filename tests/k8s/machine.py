"""What the test cluster needs of the machine it runs on, and puts back when it goes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from k8s.layout import GATEWAY, POD_NETWORK, SUBNET, ClusterError

CGROUPS = Path("/sys/fs/cgroup")
# Kubernetes 1.20 and runc 1.1 keep a pod in every one of these.
HIERARCHIES = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
# Debian's package -> a program by which it is known to be there.
PACKAGES = {
    "dpkg": "dpkg",
    "gcc": "gcc",
    "iproute2": "ip",
    "iptables": "iptables",
    "mount": "mount",
    "podman": "podman",
    "util-linux": "nsenter",
}
GUARD_METRIC = "4000000000"
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def run(
    *words: str | Path,
    timeout_s: float = 120,
    check: bool = True,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Returns what a command came to; raises with its own words when it fails."""
    command = [str(word) for word in words]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(command)[:500]}: not done after {timeout_s:.0f} s") from error
    if check and done.returncode != 0:
        raise ClusterError(f"{' '.join(command)[:500]}: exit code {done.returncode}\n{done.stderr.strip()[-4000:]}")
    return done


def missing_packages() -> list[str]:
    """Returns the packages that the cluster needs and this machine lacks."""
    return [name for name, program in PACKAGES.items() if shutil.which(program) is None]


def why_not() -> str:
    """Returns why no cluster can be put up on this machine; empty when nothing speaks against it."""
    if os.geteuid() != 0:
        return "this machine lacks a root user here: the test cluster makes namespaces, cgroups and routes"
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    lacking = [name for name, number in CAPABILITIES.items() if not effective >> number & 1]
    if lacking:
        return f"this machine lacks {' and '.join(lacking)} for the test cluster: it is a container without privileges"
    gone = [name for name in HIERARCHIES if not (CGROUPS / name / "cgroup.procs").exists()]
    if gone:
        return f"this machine lacks the version 1 cgroups {', '.join(gone)}, which Kubernetes 1.20 is run with here"
    if shutil.which("apt-get") is None:
        return "this machine lacks apt-get, from whose sources Kubernetes is built"
    if missing_packages():
        return f"this machine lacks {', '.join(missing_packages())}: apt-get install {' '.join(missing_packages())}"
    return ""


def guard_addresses() -> None:
    """Keeps packets for the cluster's addresses on this machine, whether or not its bridge is there."""
    taken = [line for line in run("ip", "route", "show").stdout.splitlines() if GATEWAY.rpartition(".")[0] in line]
    foreign = [line for line in taken if not line.startswith("unreachable")]
    if foreign:
        raise ClusterError(f"the addresses {SUBNET} are in use on this machine: {foreign[0]}", hint="make k8s-down")
    for network in (SUBNET, POD_NETWORK):
        run("ip", "route", "replace", "unreachable", network, "metric", GUARD_METRIC)


def lift_guard() -> None:
    """Gives the addresses back; comes last."""
    for network in (SUBNET, POD_NETWORK):
        run("ip", "route", "delete", "unreachable", network, "metric", GUARD_METRIC, check=False)
