"""Intel MPI, MPICH, Open MPI and Slurm: their starters place one agent on each host, which connects back to us.

A starter hands standard input to one process only, and a command line is for everyone to read. So agents fetch their
part over a connection on which both sides prove that they know a secret. The secret travels in the environment,
which these starters carry over connections of their own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from corebound.config import env
from corebound.errors import HostError, LaunchError
from corebound.launcher.addresses import own_addresses, source_address
from corebound.launcher.allocation import node_names
from corebound.launcher.handshake import new_secret
from corebound.launcher.hostfile import Dialect, Host, render_machinefile
from corebound.launcher.link import Link
from corebound.launcher.rendezvous import Rendezvous
from corebound.launcher.signals import SignalPipe
from corebound.launcher.spec import LaunchSpec
from corebound.launcher.streams import Pump
from corebound.launcher.transports import ssh

SECRET = "COREBOUND_AGENT_SECRET"  # noqa: S105  a name
_SLURM_IDENTITY = "SLURMD_NODENAME"
_END_S = 5.0
_LOST_END_S = 1.0
_NOT_ALLOCATED = ("node count", "node configuration", "Invalid node name")
_VERSION_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Start:
    """What a starter's command is made of. `interface` None leaves the choice to the starter."""

    spec: LaunchSpec
    hosts: Sequence[str]
    hostfile: str
    link: str
    interface: str | None

    @property
    def num_hosts(self) -> str:
        """How many agents there are to be."""
        return str(len(self.hosts))


@dataclass(frozen=True)
class Starter:
    """One program that starts processes on hosts: how it is found, told apart and called.

    `ssh_variable` holds its arguments for ssh, `fixed` are variables that it must see.
    """

    title: str
    tools: tuple[str, ...]
    marks: tuple[str, ...]
    package: str
    dialect: Dialect
    identity: str
    words: Callable[[Start], tuple[str, ...]]
    ssh_variable: str | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)

    def find(self, environ: Mapping[str, str]) -> Path | None:
        """Return the program: beside a Python that has it as a package, under I_MPI_ROOT, or on the PATH."""
        folders = [str(Path(sys.executable).parent), environ.get("PATH", os.defpath)]
        if self.identity == "PMI_RANK" and environ.get("I_MPI_ROOT"):
            folders.insert(0, str(Path(environ["I_MPI_ROOT"]) / "bin"))
        for tool in self.tools:
            for folder in folders:
                found = shutil.which(tool, path=folder)
                if found is not None and self._is_ours(found):
                    return Path(found)
        return None

    def names(self, hosts: Sequence[str], environ: Mapping[str, str]) -> list[str]:
        """Return the names under which the starter knows the hosts.

        Raises: ConfigError for a host that it cannot know.
        """
        return node_names(hosts, environ) if self.identity == _SLURM_IDENTITY else list(hosts)

    def command(self, start: Start, tool: str, environ: Mapping[str, str]) -> tuple[str, ...]:
        """Return the whole command; the user's arguments stand before ours for the agent."""
        agent = ssh.agent_words(start.spec, environ.get("PYTHONPATH"), start.link)
        return (tool, *self.words(start), *start.spec.launcher_words, *agent, self.identity)

    def variables(self, spec: LaunchSpec, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the variables to set for the command; the user's arguments for ssh stay, before ours."""
        if self.ssh_variable is None:
            return dict(self.fixed)
        words = (*shlex.split(environ.get(self.ssh_variable, "")), *ssh.ssh_options(spec))
        return {**self.fixed, self.ssh_variable: shlex.join(words)}

    def shown(self, start: Start, tool: str, environ: Mapping[str, str]) -> tuple[str, ...]:
        """Return the command as it could be typed, with the variables that are set for it."""
        variables = [f"{name}={value}" for name, value in self.variables(start.spec, environ).items()]
        return ("env", f"{SECRET}=SECRET", *variables, *self.command(start, tool, environ))

    def _is_ours(self, tool: str) -> bool:
        """Several programs go by the name of mpiexec."""
        try:
            said = subprocess.run(
                [tool, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return any(mark in said.stdout + said.stderr for mark in self.marks)


def _hydra(start: Start, *more: str, exported: str = SECRET) -> tuple[str, ...]:
    interface = () if start.interface is None else ("-iface", start.interface)
    # hydra reads what is meant for all processes only before the first word that is meant for some.
    return ("-f", start.hostfile, "-ppn", "1", *interface, *more, "-genvlist", exported, "-n", start.num_hosts)


def _intel(start: Start) -> tuple[str, ...]:
    return _hydra(start, "-bootstrap", "ssh", exported=f"{SECRET},I_MPI_PIN")


def _mpich(start: Start) -> tuple[str, ...]:
    return _hydra(start, "-launcher", "ssh", "-bind-to", "none")


def _openmpi(start: Start) -> tuple[str, ...]:
    interface = () if start.interface is None else ("--mca", "oob_tcp_if_include", start.interface)
    root = ("--allow-run-as-root",) if os.geteuid() == 0 else ()
    place = ("--map-by", "ppr:1:node", "--bind-to", "none")
    return ("--hostfile", start.hostfile, "-n", start.num_hosts, *place, *root, *interface, "-x", SECRET)


def _slurm(start: Start) -> tuple[str, ...]:
    # Only what is named reaches the tasks. PATH and HOME are the nodes' business, but Slurm sets neither by itself.
    return (
        "--nodes", start.num_hosts, "--ntasks", start.num_hosts, "--ntasks-per-node", "1",
        "--nodelist", ",".join(start.hosts), "--cpu-bind=none", "--mem-bind=none", "--kill-on-bad-exit=0",
        # The launcher may itself be a step that holds the processors, as in `srun --pty bash`.
        "--overlap",
        f"--export={SECRET},PATH,HOME,USER,LANG",
    )  # fmt: skip


DIALECTS: dict[str, Starter] = {
    "impi": Starter(
        title="Intel MPI",
        tools=("mpiexec.hydra",),
        marks=("Intel(R) MPI Library",),
        package="install the package impi-rt beside this Python",
        dialect="colon",
        identity="PMI_RANK",
        words=_intel,
        ssh_variable="I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS",
        # The agent binds; Intel MPI must not narrow the cores that it sees.
        fixed={"I_MPI_PIN": "off"},
    ),
    "mpich": Starter(
        title="MPICH",
        tools=("mpiexec.mpich", "mpiexec.hydra", "mpiexec"),
        marks=("HYDRA build details",),
        package="install the package mpich",
        dialect="colon",
        identity="PMI_RANK",
        words=_mpich,
        ssh_variable="HYDRA_LAUNCHER_EXTRA_ARGS",
    ),
    "openmpi": Starter(
        title="Open MPI",
        tools=("mpirun.openmpi", "mpirun"),
        marks=("Open MPI", "OpenRTE", "PRRTE"),
        package="install the package openmpi-bin",
        dialect="slots",
        identity="OMPI_COMM_WORLD_RANK",
        words=_openmpi,
        ssh_variable="OMPI_MCA_plm_rsh_args",
    ),
    "slurm": Starter(
        title="Slurm",
        tools=("srun",),
        marks=("slurm",),
        package="run the launch where srun is, on a login node of the cluster",
        dialect="slots",
        identity=_SLURM_IDENTITY,
        words=_slurm,
    ),
}


def interface_to(hosts: Sequence[str]) -> str | None:
    """Return the interface that leads to the first host elsewhere, None when all are here or cannot be resolved.

    Raises: LaunchError when the kernel does not tell the addresses of this machine.
    """
    addresses = own_addresses()
    sources = (source_address(host) for host in hosts)
    found = (address.interface for source in sources for address in addresses if address.ip == source)
    return next(found, None)


def hint_for(words: Sequence[str]) -> str | None:
    """Return what to do about a starter's last words, None where they are not known."""
    if any(mark in word for mark in _NOT_ALLOCATED for word in words):
        return "the hosts of the hostfile must be nodes of the allocation, under Slurm's names"
    return ssh.hint_for(words)


@contextmanager
def started(
    starter: Starter, spec: LaunchSpec, hosts: Sequence[str], environ: Mapping[str, str], signals: SignalPipe
) -> Iterator[list[Link]]:
    """Start an agent on each host and yield the links, in the order of the hosts; afterwards nothing runs any more.

    Raises: HostError when the program is not installed; LaunchError naming the hosts whose agents did not connect
    within COREBOUND_START_TIMEOUT_S; ConfigError when that is no time.
    """
    timeout_s = env.settings(environ).start_timeout_s
    tool = starter.find(environ)
    if tool is None:
        raise HostError(
            f"--launcher {spec.launcher}: {starter.title} is not on this machine (looked for "
            f"{', '.join(starter.tools)})",
            hint=f"{starter.package}, or use --launcher ssh",
        )
    known = starter.names(hosts, environ)
    secret = new_secret()
    # Where TMPDIR is on NFS, a file that is still open keeps its folder from being removed: no reason to end a launch.
    folder = tempfile.TemporaryDirectory(prefix="corebound-", ignore_cleanup_errors=True)
    with folder, Rendezvous(secret, timeout_s) as rendezvous:
        hostfile = Path(folder.name) / "hosts"
        hostfile.write_text(render_machinefile([Host(name, 1) for name in hosts], starter.dialect), encoding="ascii")
        start = Start(spec, known, str(hostfile), _places(hosts, rendezvous.port), interface_to(hosts))
        try:
            process = subprocess.Popen(
                starter.command(start, str(tool), environ),
                # First, because the hydra of MPICH 4.0 overlooks the last variable of its environment.
                env={SECRET: secret, **environ, **starter.variables(spec, environ)} | {SECRET: secret},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise LaunchError(f"{tool} could not be started: {error.strerror}") from error
        assert process.stdout is not None
        words = Pump(os.dup(process.stdout.fileno()), None, None)
        process.stdout.close()
        links: list[Link] = []
        try:
            numbers = [str(index) for index in range(len(hosts))]
            identities = known if starter.identity == _SLURM_IDENTITY else numbers
            links = rendezvous.links(dict(zip(identities, hosts, strict=True)), process, words, signals, hint_for)
            folder.cleanup()  # read by now; later nobody may be left to do it
            yield links
        finally:
            # A starter that waits for a lost host may wait for minutes.
            _end(process, _END_S if links and all(link.done is not None for link in links) else _LOST_END_S)


def _places(hosts: Sequence[str], port: int) -> str:
    """Return where agents find us: first the addresses that lead to the hosts. A wrong one fails the handshake."""
    sources = [source for source in map(source_address, hosts) if source is not None]
    addresses = dict.fromkeys([*sources, *(address.ip for address in own_addresses()), "127.0.0.1"])
    return ",".join(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip in addresses)


def _end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Wait for a starter whose agents have ended, or been let go of; help it if it does not see that."""
    for help_it in (process.terminate, process.kill):
        try:
            process.wait(patience_s)
            return
        except subprocess.TimeoutExpired:
            help_it()
    process.wait()
