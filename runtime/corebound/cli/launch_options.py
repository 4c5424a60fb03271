"""The flags of every command that launches ranks, and the LaunchSpec that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from corebound.cli.deepspeed_options import refuse, say_no_effect, set_log_level, set_quiet, unset_if_minus_one
from corebound.config import env as environment
from corebound.config.suggest import require_choice
from corebound.launcher.allocation import allocated_hosts
from corebound.launcher.spec import LAUNCHERS, REPLACED_LAUNCHERS, LaunchSpec
from corebound.logs import get_logger

_Command = TypeVar("_Command", bound=Callable[..., Any])
_log = get_logger(__name__)


def _launcher(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None or value in REPLACED_LAUNCHERS:
        return value  # the spec says what there is in place of such a one
    return require_choice("launcher", value, LAUNCHERS, where="--launcher")


class _LaunchOption(click.Option):
    """An option whose long names are accepted with - in place of _ too; help shows one spelling."""

    def add_to_parser(self, parser: click.parser._OptionParser, ctx: click.Context) -> None:
        shown = self.opts, self.secondary_opts
        self.opts, self.secondary_opts = ([*names, *_with_dashes(names)] for names in shown)
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts, self.secondary_opts = shown


def _with_dashes(names: list[str]) -> list[str]:
    return [name.replace("_", "-") for name in names if name.startswith("--") and "_" in name]


def _option(*names: str, **attributes: Any) -> Callable[[_Command], _Command]:
    return click.option(*names, cls=_LaunchOption, **attributes)


DEEPSPEED_HOSTFILE = Path("/job/hostfile")
_PATH = click.Path(path_type=Path)
# In the order of the help text.
_OPTIONS = (
    _option(
        "-H",
        "--hostfile",
        type=_PATH,
        help="File with `host slots=N` lines; without it, this machine alone, or Slurm's nodes.",
    ),
    _option("-i", "--include", metavar="SPEC", help="Hosts and slots to use: NAME[:slot,slot...]@NAME..."),
    _option("-e", "--exclude", metavar="SPEC", help="Hosts and slots to leave out, in the same form."),
    _option(
        "--num_nodes", type=int, callback=unset_if_minus_one, metavar="N", help="Use the first N hosts of the hostfile."
    ),
    _option(
        "--num_accelerators",
        "--num_gpus",
        "num_accelerators",
        type=int,
        callback=unset_if_minus_one,
        metavar="N",
        help="Ranks on each host; on this machine alone by default one for each NUMA node.",
    ),
    _option(
        "--bind_cores_to_rank/--no_bind_cores_to_rank",
        default=None,
        help="Give each rank cores and memory of its own.",
    ),
    _option("--bind_core_list", metavar="LIST", help="Bind to these CPUs only, such as 0-3,8 (implies binding)."),
    _option("--launcher", callback=_launcher, metavar=f"{{{','.join(LAUNCHERS)}}}", help="How to reach the hosts."),
    _option("--launcher_args", metavar="TEXT", help="More arguments for the launcher's own command."),
    _option("--remote_python", metavar="FILE", help="Python of the other hosts; by default the same path as here."),
    _option("--venv_script", type=_PATH, metavar="FILE", help="Read by bash on other hosts before the agent starts."),
    _option("--master_addr", metavar="HOST", help="Where ranks meet; by default the first host."),
    _option("--master_port", type=int, metavar="N", help="Port where ranks meet; by default 29500, or a free one."),
    _option("--ssh_port", type=int, metavar="N", help="Port of the hosts' SSH servers."),
    _option(
        "--wait_for_hosts",
        "wait_for_hosts_s",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="Wait so long until the SSH servers of all hosts answer, then fail and name those that do not.",
    ),
    _option(
        "--node_rank",
        type=int,
        callback=unset_if_minus_one,
        metavar="N",
        help="With --no_ssh: which host of the hostfile this is, from 0.",
    ),
    _option("--no_ssh", is_flag=True, help="Start this node's ranks only; run the command on every node yourself."),
    _option("--module", is_flag=True, help="SCRIPT is a Python module, run as with python -m."),
    _option("--no_python", is_flag=True, help="SCRIPT is a program, run without Python."),
    _option("--no_local_rank", is_flag=True, help="Do not pass --local_rank=N to the script."),
    _option(
        "--enable_each_rank_log", type=_PATH, metavar="DIR", help="Also write each rank's output to a file in DIR."
    ),
    _option("--force_multi", is_flag=True, help="Treat a single host as a remote one."),
    _option(
        "--save_pid", is_flag=True, help="Write the agent's process id to <temporary directory>/<our pid>.corebound."
    ),
    _option(
        "--log_level",
        callback=set_log_level,
        expose_value=False,
        metavar=f"{{{','.join(environment.LOG_LEVELS)}}}",
        help="Least severe message shown, of ranks too.",
    ),
    _option("-q", "--quiet", is_flag=True, callback=set_quiet, expose_value=False, help="Show errors only."),
    _option("--no_ssh_check", is_flag=True, callback=say_no_effect, expose_value=False, hidden=True),
    _option("--elastic_training", is_flag=True, callback=refuse, expose_value=False, hidden=True),
    _option("--min_elastic_nodes", type=int, callback=refuse, expose_value=False, hidden=True),
    _option("--max_elastic_nodes", type=int, callback=refuse, expose_value=False, hidden=True),
    _option("--autotuning", callback=refuse, expose_value=False, hidden=True),
)


def launch_options(command: _Command) -> _Command:
    """Return a command function with every launch flag added; its keyword arguments go to `spec_from_options`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


OPTION_NAMES = frozenset(
    {
        "hostfile", "include", "exclude", "num_nodes", "num_accelerators", "bind_cores_to_rank", "bind_core_list",
        "launcher", "launcher_args", "remote_python", "venv_script", "master_addr", "master_port", "ssh_port",
        "node_rank", "no_ssh", "module", "no_python", "no_local_rank", "enable_each_rank_log", "force_multi",
        "save_pid", "wait_for_hosts_s",
    }
)  # fmt: skip


def spec_from_options(
    command: tuple[str, ...],
    *,
    arguments: tuple[str, ...] = (),
    pass_local_rank: bool = False,
    bind_by_default: bool = False,
    rank0_stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    file_environ: Mapping[str, str] | None = None,
    **options: Any,
) -> LaunchSpec:
    """Return the spec for the keyword arguments that `launch_options` adds; others are not accepted.

    `bind_by_default` is for commands of ours: without a flag they bind where each rank can have a core of its own.
    The flags on how a script is run (--module, --no_python, --no_local_rank) are the business of `corebound run`; where
    they are still set here, a warning says that they have no effect.

    Raises: ConfigError for values that are out of range or contradict each other.
    """
    foreign = set(options) - OPTION_NAMES
    if foreign:
        raise TypeError(f"not launch options: {', '.join(sorted(foreign))}")
    for name in ("module", "no_python", "no_local_rank"):
        if options.pop(name, False):
            _log.warning("--%s has no effect here: this command runs no script", name)
    if options.get("hostfile") is None and DEEPSPEED_HOSTFILE.is_file():
        _log.warning("%s is not read: Corebound has no default hostfile, name it with --hostfile", DEEPSPEED_HOSTFILE)
    if options.get("launcher") == "slurm" and options.get("hostfile") is None:
        options["hosts"] = allocated_hosts(environment.snapshot())
    bind_cores: bool | None = options.pop("bind_cores_to_rank", None)
    if bind_cores is None and not bind_by_default:
        bind_cores = False
    return LaunchSpec(
        command=command,
        arguments=arguments,
        pass_local_rank=pass_local_rank,
        rank0_stdin=rank0_stdin,
        env=env or {},
        file_environ=file_environ or {},
        bind_cores_to_rank=bind_cores,
        log_dir=options.pop("enable_each_rank_log", None),
        **options,
    )
