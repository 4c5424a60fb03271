"""What a user asked a launch to be: validated on its own, with nothing looked up yet."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from corebound.config.suggest import require_choice
from corebound.errors import ConfigError
from corebound.launcher.corelist import parse_core_list
from corebound.launcher.hostfile import MAX_SLOTS, Host
from corebound.launcher.hostfilter import parse_filter

LAUNCHERS = ("local", "ssh", "impi", "openmpi", "mpich", "slurm")
# DeepSpeed's launchers that Corebound has others for.
REPLACED_LAUNCHERS = {"pdsh": "ssh", "mvapich": "mpich"}
DEFAULT_MASTER_PORT = 29500
LOCALHOST = "localhost"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class LaunchSpec:
    """A launch as asked for. None means not given.

    `hosts` are those of an allocation, where no hostfile was given. A rank runs `command`, then `--local_rank=N` if
    `pass_local_rank`, then `arguments`. `bind_cores_to_rank` None binds where every rank can have a core of its own and
    otherwise lets ranks share cores, with a warning. `env` is added to the environment of every rank. `file_environ`
    are variables that every rank finds as if they were in the environment that it inherits. `venv_script` is a file on
    each host that bash reads before the agent starts. `rank0_stdin` is what rank 0 reads on standard input; all else
    reads nothing. `remote_python` is the Python of other hosts where it has another path than here. `wait_for_hosts_s`
    is how long to wait until all other hosts answer at their SSH port; 0 does not look. `grace_s` is the time between
    asking ranks to stop and killing them; after a failure it is two seconds at most.

    Raises: ConfigError for values that are out of range or contradict each other.
    """

    command: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    pass_local_rank: bool = False
    hostfile: Path | None = None
    hosts: tuple[Host, ...] = ()
    include: str | None = None
    exclude: str | None = None
    num_nodes: int | None = None
    num_accelerators: int | None = None
    bind_cores_to_rank: bool | None = False
    bind_core_list: str | None = None
    launcher: str | None = None
    launcher_args: str | None = None
    remote_python: str | None = None
    venv_script: Path | None = None
    master_addr: str | None = None
    master_port: int | None = None
    ssh_port: int | None = None
    node_rank: int | None = None
    no_ssh: bool = False
    force_multi: bool = False
    log_dir: Path | None = None
    save_pid: bool = False
    rank0_stdin: bytes | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    file_environ: Mapping[str, str] = field(default_factory=dict)
    wait_for_hosts_s: float = 0.0
    grace_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.command or not all(isinstance(word, str) for word in (*self.command, *self.arguments)):
            raise ConfigError("a launch needs a command: a sequence of strings")
        _check_range("--num_nodes", self.num_nodes, 1, MAX_SLOTS)
        _check_range("--num_accelerators", self.num_accelerators, 1, MAX_SLOTS)
        _check_range("--master_port", self.master_port, 1, 65535)
        _check_range("--ssh_port", self.ssh_port, 1, 65535)
        _check_range("--node_rank", self.node_rank, 0, MAX_SLOTS)
        try:
            self.launcher_words  # noqa: B018  reading it checks it
        except ValueError as error:
            raise ConfigError(f"--launcher_args {self.launcher_args!r}: {error}") from error
        if self.launcher in REPLACED_LAUNCHERS:
            raise ConfigError(
                f"--launcher {self.launcher}: Corebound does not use it",
                hint=f"--launcher {REPLACED_LAUNCHERS[self.launcher]} does the same, core binding included",
            )
        if self.launcher is not None:
            require_choice("launcher", self.launcher, LAUNCHERS, where="--launcher")
        if self.bind_core_list is not None:
            parse_core_list(self.bind_core_list)
        if self.grace_s < 0:
            raise ConfigError(f"grace_s: expected 0 or more, found {self.grace_s}")
        if not 0 <= self.wait_for_hosts_s < float("inf"):
            raise ConfigError(f"--wait_for_hosts: expected seconds, 0 or more, found {self.wait_for_hosts_s}")
        self._check_hosts()
        self._check_node_rank()
        for name, value in self.env.items():
            if not _VARIABLE.fullmatch(name) or "\0" in value:
                raise ConfigError(f"env: expected a variable name and a value without NUL, found {name!r}")

    @property
    def launcher_words(self) -> tuple[str, ...]:
        """The words of --launcher_args, quoted as in a shell."""
        return tuple(shlex.split(self.launcher_args or ""))

    @property
    def hosts_source(self) -> str:
        """Where the hosts come from, as a message names it."""
        return "the allocation" if self.hostfile is None else f"hostfile {self.hostfile}"

    @property
    def binds(self) -> bool | None:
        """Whether to bind: a core list asks for it too. None means where it is possible."""
        return True if self.bind_core_list is not None else self.bind_cores_to_rank

    def _check_hosts(self) -> None:
        if self.include is not None and self.exclude is not None:
            raise ConfigError("--include and --exclude cannot be used together", hint="give the one that is shorter")
        for flag, text in (("--include", self.include), ("--exclude", self.exclude)):
            if text is None:
                continue
            parse_filter(text, where=flag)
            for other, count in (("--num_nodes", self.num_nodes), ("--num_accelerators", self.num_accelerators)):
                if count is not None:
                    raise ConfigError(
                        f"{flag} and {other} cannot be used together: the filter says which hosts and slots run",
                        hint=f"leave out {other}, or name fewer slots in {flag}",
                    )
        if self.num_nodes is not None and self.num_nodes > 1 and self.hostfile is None and not self.hosts:
            raise ConfigError(
                f"--num_nodes {self.num_nodes} needs --hostfile: without it there is only this machine",
                hint="write one `host slots=N` a line into a file and name it with --hostfile",
            )

    def _check_node_rank(self) -> None:
        if self.no_ssh and self.node_rank is None:
            raise ConfigError("--no_ssh needs --node_rank: which host of the hostfile this machine is, counted from 0")
        if self.node_rank is not None and not self.no_ssh:
            raise ConfigError(
                "--node_rank has a meaning only with --no_ssh",
                hint="add --no_ssh when you start this command on every node yourself",
            )
        if self.no_ssh and self.hostfile is None:
            raise ConfigError("--no_ssh needs --hostfile: every node must know all hosts and their slots")


def _check_range(flag: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{flag}: expected a number from {low} to {high}, found {value}")
