"""corebound plan: what a launch would do, without doing it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from corebound.cli.launch_options import launch_options, spec_from_options
from corebound.cli.plan_model import OPTION_NAMES, model_options, predict_model
from corebound.cli.plan_model import as_dict as model_as_dict
from corebound.cli.plan_model import render as render_model
from corebound.cli.run import CONTEXT, script_spec
from corebound.config import env
from corebound.launcher.corelist import render_core_list
from corebound.launcher.hosts import topology_reader
from corebound.launcher.launch import transport_of
from corebound.launcher.plan import LaunchPlan
from corebound.launcher.plan import plan as make_plan
from corebound.launcher.remote import launch_commands
from corebound.launcher.spec import LaunchSpec
from corebound.launcher.transports.local import agent_command


@click.command(context_settings=CONTEXT)
@launch_options
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Read DIR/sys and DIR/proc in place of this machine's; every host is taken to look like that.",
    metavar="DIR",
)
@click.argument("script", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def plan(script: str | None, args: tuple[str, ...], as_json: bool, root: Path | None, **options: Any) -> int:
    """Show the ranks of a launch: hosts, cores, memory, threads, environment and commands. Nothing is started.

    Takes the flags of `corebound run`, and a script with its arguments if you like. Cores of other hosts are not known
    from here: their agents choose them by the same rules.

    With --model or --shape it also predicts the time to the first token and to the next, the memory of a rank and the
    best split, from ceilings that it measures here in a few seconds or reads from a file, and says which of them binds.

    \b
    Examples:
      corebound plan --bind_cores_to_rank
      corebound plan --hostfile hosts --json -- script.py --steps 10
      corebound plan --model demo
      corebound plan --shape llama-1.1b --dtype int8 --prompt-tokens 1024 --context 2048
      corebound plan --measure ceilings.json                           on a machine like those of the hostfile
      corebound plan --hostfile hosts --model DIR --ceilings ceilings.json    anywhere
    """  # noqa: D301  click reads the \\b
    asked = {name: options.pop(name) for name in OPTION_NAMES}
    if script is None:
        for name in ("module", "no_python", "no_local_rank"):
            options.pop(name)
        spec = spec_from_options(("SCRIPT",), **options)
    else:
        spec = script_spec(script, args, options)
    whole = make_plan(spec, topology_reader(root), environ={**env.snapshot(), **spec.file_environ})
    for text in (*whole.warnings, *(f"{node.host}: {text}" for node in whole.nodes for text in node.warnings)):
        click.echo(f"warning: {text}", err=True)
    predicted = predict_model(whole, spec.num_accelerators, root is not None, **asked)
    if as_json:
        found = as_dict(whole, agent_commands(spec, whole))
        click.echo(json.dumps(found if predicted is None else found | model_as_dict(*predicted), indent=2))
    else:
        print_plan(spec, whole, Console(soft_wrap=True))
        if predicted is not None:
            click.echo("\n" + render_model(*predicted))
    return 0


def agent_commands(spec: LaunchSpec, whole: LaunchPlan) -> tuple[tuple[str, ...], ...]:
    """Return the commands that start the agents: one for each host, or a single one where MPI or Slurm does it.

    Raises: ConfigError for a launcher that cannot start them.
    """
    if transport_of(spec, whole) == "local":
        return tuple(agent_command() for _ in whole.nodes)
    return launch_commands(spec, whole, env.snapshot())


def as_dict(whole: LaunchPlan, commands: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """Return the plan as `--json` prints it."""
    return {
        "ranks": [rank.as_row() for rank in whole.ranks],
        "commands": [list(command) for command in commands],
        "hosts": [
            {"host": node.host, "node_rank": node.node_rank, "num_slots": node.num_slots, "bound": node.bound}
            for node in whole.nodes
        ],
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_plan(spec: LaunchSpec, whole: LaunchPlan, console: Console) -> None:
    """Print the plan as a table, one rank a line."""
    table = Table(box=None, header_style="bold")
    for column in ("rank", "local rank", "host", "cpus", "threads", "memory", "binding"):
        table.add_column(column, no_wrap=True, justify="right" if "rank" in column or column == "threads" else "left")
    for node in whole.nodes:
        for rank in node.ranks:
            binding = rank.binding
            memory = (
                "" if binding is None else f"{binding.memory_policy} {render_core_list(binding.memory_nodes)}".rstrip()
            )
            table.add_row(
                str(rank.rank),
                str(rank.local_rank),
                rank.host,
                "chosen on the host" if binding is None else render_core_list(binding.cpus),
                "" if binding is None else str(binding.num_threads),
                memory,
                "" if node.bound is None else "own cores" if node.bound else "shared, not bound",
            )
    console.print(table)
    size = f"{_count(len(whole.ranks), 'rank')} on {_count(len(whole.nodes), 'host')}"
    choice = "" if spec.master_port else " (a free port, should that one be busy)"
    console.print(f"\n{size} meet at {whole.master_addr}:{whole.master_port}{choice}", highlight=False)
    if any(node.bound is False for node in whole.nodes) and not spec.bind_cores_to_rank:
        console.print("cores are shared: --bind_cores_to_rank gives each rank its own", highlight=False)
    if transport_of(spec, whole) != "local":
        for command in agent_commands(spec, whole):
            console.print(f"agents start by: {shlex.join(command)}", highlight=False, markup=False)
    console.print(f"rank 0 runs: {shlex.join(whole.ranks[0].command)}", highlight=False, markup=False)
