"""A real Slurm on the lab's nodes: the controller on the first, a daemon on each, one key for all."""

from __future__ import annotations

import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

from lab.deployed import JOB_USER, Deployed
from lab.layout import LabError

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
# A node that was away is back in service this long after its daemon spoke up.
READY_TIMEOUT_S = 90.0
# Containers of one machine share its control groups, so processes are told apart by their parents.
CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={controller}
SlurmUser=slurm
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmdTimeout=10
KillWait=5
ReturnToService=2
NodeName={nodes} CPUs={num_cpus} RealMemory=512 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
START = """\
set -e
chown munge: /etc/munge/munge.key
install -d -o slurm /var/lib/slurm/slurmctld
install -d /var/lib/slurm/slurmd
systemctl enable --quiet munge slurmd
systemctl restart munge slurmd
"""


def allocate(num_nodes: int) -> tuple[str, ...]:
    """Returns the words that run a command inside an allocation of whole nodes."""
    return ("salloc", "--quiet", "--exclusive", f"--nodes={num_nodes}")


def put_up(deployed: Deployed) -> None:
    """Configures and starts Slurm on every node, and returns when all of them take jobs."""
    names = [node.name for node in deployed.nodes]
    text = CONFIGURATION.format(controller=names[0], nodes=",".join(names), num_cpus=len(os.sched_getaffinity(0)))
    key = secrets.token_hex(128)

    def start(name: str) -> None:
        deployed.write(name, "/etc/munge/munge.key", key, user="root")
        deployed.write(name, "/etc/slurm/slurm.conf", text, user="root")
        deployed.podman.execute(name, "sh", "-c", START)

    with ThreadPoolExecutor() as pool:
        list(pool.map(start, names))
    deployed.podman.execute(names[0], "sh", "-c", "systemctl enable --quiet slurmctld; systemctl restart slurmctld")
    wait(deployed)


def release(deployed: Deployed) -> None:
    """Cancels all jobs, also those whose salloc was killed and could not give them back, and waits for the nodes."""
    deployed.podman.execute(deployed.nodes[0].name, "scancel", "--user", JOB_USER)
    wait(deployed)


def wait(deployed: Deployed) -> None:
    """Returns when every node is idle; raises with what Slurm says of those that are not."""
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        done = deployed.podman(
            "exec", deployed.nodes[0].name, "sinfo", "--noheader", "--Node", "--format", "%N %T %E", check=False
        )
        states = [line.split() for line in done.stdout.splitlines()]
        if len(states) == len(deployed.nodes) and all(state[1] == "idle" for state in states):
            return
        time.sleep(0.5)
    raise LabError(f"Slurm's nodes are not idle within {READY_TIMEOUT_S:.0f} s:\n{done.stdout}{done.stderr}")
