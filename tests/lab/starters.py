"""Puts the programs that start processes on other hosts onto the lab's nodes: MPI's and Slurm's."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from corebound import native_ccl
from lab import access, slurm
from lab.deployed import COMMAND, HOSTFILE, JOB_USER, PREFIX, Deployed

INSTALL_TIMEOUT_S = 600.0
INTEL_MPI = "impi-rt==2021.18.1"
WAYS = ("ssh", "impi", "openmpi", "mpich", "slurm")
PACKAGES = {"openmpi": ("openmpi-bin",), "mpich": ("mpich",), "slurm": slurm.PACKAGES}


@dataclass(frozen=True)
class Way:
    """One way to reach the other nodes, ready on all of them. `before` are the words that stand before our command."""

    name: str
    before: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)

    def words(self, verb: str, *args: str, hostfile: str = HOSTFILE) -> tuple[str, ...]:
        """Returns the words of a command of ours that launches this way."""
        return (*self.before, COMMAND, verb, "--launcher", self.name, "--hostfile", hostfile, *args)


def everywhere(deployed: Deployed, work: Callable[[str], None]) -> None:
    """Does something on all nodes at once; raises what the first of them raised."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(work, [node.name for node in deployed.nodes]))


def ready(deployed: Deployed, name: str) -> Way:
    """Returns a way to launch, after what it needs was installed on every node."""
    if name in PACKAGES:
        everywhere(deployed, lambda node: install_packages(deployed, node, PACKAGES[name]))
    if name == "impi":
        everywhere(deployed, lambda node: install_intel_mpi(deployed, node))
    if name == "slurm":
        slurm.put_up(deployed)
        return Way(name, before=slurm.allocate(len(deployed.nodes)))
    return Way(name)


def install_packages(deployed: Deployed, node: str, packages: tuple[str, ...]) -> None:
    """Installs packages of the nodes' own distribution."""
    quiet = "DEBIAN_FRONTEND=noninteractive apt-get -qq"
    script = f"{quiet} update && {quiet} install -y --no-install-recommends {' '.join(packages)}"
    deployed.podman.execute(node, "sh", "-c", script, timeout_s=INSTALL_TIMEOUT_S)


def install_intel_mpi(deployed: Deployed, node: str) -> None:
    """Installs Intel MPI beside Corebound, from where pip on this machine finds packages."""
    settings = [f"{name}={value}" for name, value in access.pip_environment(access.pip_settings()).items()]
    words = (f"{PREFIX}/venv/bin/pip", "install", "--quiet", "--no-cache-dir", "--root-user-action=ignore", INTEL_MPI)
    deployed.podman.execute(node, "env", *settings, *words, timeout_s=INSTALL_TIMEOUT_S)


def install_oneccl(deployed: Deployed, node: str) -> None:
    """Installs oneCCL's run time beside Corebound, and the binding that was built on this machine."""
    settings = [f"{name}={value}" for name, value in access.pip_environment(access.pip_settings()).items()]
    pip = (f"{PREFIX}/venv/bin/pip", "install", "--quiet", "--no-cache-dir", "--no-deps", "--root-user-action=ignore")
    deployed.podman.execute(node, "env", *settings, *pip, *native_ccl.RUN_TIME_PINS, timeout_s=INSTALL_TIMEOUT_S)
    ask = "import pathlib, corebound; print(pathlib.Path(corebound.__file__).parent / 'lib')"
    folder = deployed.podman.execute(node, f"{PREFIX}/venv/bin/python", "-c", ask).strip()
    deployed.podman("cp", str(native_ccl.library_path()), f"{node}:{folder}/{native_ccl.library_path().name}")


def processes(deployed: Deployed, node: str) -> list[str]:
    """Returns what runs on a node for its launches: all that the job user has, and what Slurm keeps for it."""
    listed = deployed.podman.execute(node, "ps", "-eo", "user:20=,pid=,stat=,args=").splitlines()
    found = [line for line in listed if line.startswith(f"{JOB_USER} ") or "slurmstepd: [" in line]
    # What has ended and was not yet asked how is no process any more.
    return [line for line in found if not line.split()[2].startswith("Z")]


def segments(deployed: Deployed, node: str) -> list[str]:
    """Returns the shared-memory segments of launches on a node."""
    return deployed.podman.execute(node, "find", "/dev/shm", "-name", "corebound*").split()


def clean(deployed: Deployed, node: str) -> None:
    """Ends what a failed test left on a node, so that the next one does not find it."""
    deployed.podman("exec", node, "pkill", "-KILL", "-u", JOB_USER, check=False)
    deployed.podman.execute(node, "find", "/dev/shm", "-name", "corebound*", "-delete")


def put(deployed: Deployed, name: str, text: str) -> None:
    """Writes a file into the job user's home on every node."""
    everywhere(deployed, lambda node: deployed.write(node, f"/home/{JOB_USER}/{name}", text))


def end(launch: subprocess.Popen[str], timeout_s: float) -> tuple[int, str, str]:
    """Returns exit code, standard output and standard error of a launch that ends within the time."""
    try:
        out, err = launch.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        launch.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            out, err = launch.communicate(timeout=10)
            raise AssertionError(f"did not end within {timeout_s:g} s\n{out}\n{err}") from None
        raise
    return launch.returncode, out, err
