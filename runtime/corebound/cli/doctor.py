"""`corebound doctor`: what this machine can do, what stands in the way, and the next step for each."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict

import click

from corebound.cli.doctor_checks import machine, software
from corebound.cli.doctor_checks.base import Check, Facts
from corebound.config import env
from corebound.errors import CoreboundError
from corebound.topology import read_topology
from corebound.topology.tree import Tree

EXIT_PASS = 0
EXIT_FAILED = 1
EXIT_COULD_NOT_RUN = 2

CheckFunction = Callable[[Facts], Check | list[Check]]

# Answered by files, so also for a copied tree (--root).
FILE_CHECKS: tuple[CheckFunction, ...] = (
    machine.allowed_cpus,
    machine.cpu_quota,
    machine.smt,
    machine.numa,
    machine.numa_balancing,
    software.isa,
    machine.memory,
    machine.shared_memory,
    machine.transparent_huge_pages,
    machine.governor,
    machine.clocksource,
    machine.container,
)
# Answered only by this process on this machine.
LIVE_CHECKS: tuple[CheckFunction, ...] = (
    software.isa_active,
    software.register_state,
    software.native_libraries,
    software.one_ccl,
    software.torch,
    software.accelerator,
    software.packages,
    software.kernels,
    software.numa_tools,
    software.memory_policy,
    software.sys_nice,
    software.open_files,
)

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--root",
    default="/",
    show_default=True,
    metavar="DIR",
    help="Check the machine whose sys and proc are below DIR; checks of this process are left out.",
)
def doctor(as_json: bool, root: str) -> int:
    """Check what this machine can do for Corebound, and say what would make it better.

    Exit status: 0 when nothing failed (warnings are fine), 1 when a check failed, 2 when the checks could not run.

    \b
    Examples:
      corebound doctor
      corebound doctor --json | jq '.checks[] | select(.status != "pass")'
      corebound doctor --root /tmp/dump      a copied /sys and /proc of another machine
    """  # noqa: D301 - click reads this backspace
    try:
        checks = run_checks(root)
    except CoreboundError as error:
        click.echo(error.render(), err=True)
        return EXIT_COULD_NOT_RUN
    if as_json:
        click.echo(json.dumps({"host": platform.node(), "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        click.echo(render(checks), color=False if "NO_COLOR" in env.snapshot() else None)
    return EXIT_FAILED if any(check.status == "fail" for check in checks) else EXIT_PASS


def run_checks(root: str = "/") -> list[Check]:
    """Return the result of every check that applies to `root`.

    Raises: HostError when the machine cannot be read, ConfigError for a setting that is not valid.
    """
    tree = Tree(root)
    facts = Facts(topology=read_topology(root), tree=tree, settings=env.settings())
    if tree.is_live:
        facts = Facts(topology=facts.topology, tree=tree, settings=facts.settings, environ=env.snapshot())
    return evaluate(facts, FILE_CHECKS + LIVE_CHECKS if tree.is_live else FILE_CHECKS)


def evaluate(facts: Facts, functions: tuple[CheckFunction, ...]) -> list[Check]:
    """Return the results of `functions`; one that cannot be answered is a failure of its own, not of the rest."""
    checks: list[Check] = []
    for function in functions:
        name = function.__name__.replace("_", "-")
        try:
            result = function(facts)
        except (CoreboundError, OSError) as error:
            result = Check(
                name, "fail", f"could not be checked: {error}", "see the message; report it if it is a defect"
            )
        checks.extend(result if isinstance(result, list) else [result])
    return checks


def render(checks: list[Check]) -> str:
    """Return the text for a terminal: a line for each check, below it the next step if it did not pass, and a count."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check, following in zip(checks, [*checks[1:], None], strict=True):
        lines.append(f"{click.style(check.status, fg=_COLOURS[check.status])}  {check.name:<{width}}  {check.detail}")
        # Ops that fall back together share their next step.
        if check.status != "pass" and (following is None or following.hint != check.hint):
            lines.append(f"{'':{width + 6}}  -> {check.hint}")
    counts = {status: sum(check.status == status for check in checks) for status in _COLOURS}
    warnings = "1 warning" if counts["warn"] == 1 else f"{counts['warn']} warnings"
    lines.append(f"\n{counts['pass']} passed, {warnings}, {counts['fail']} failed")
    return "\n".join(lines)
