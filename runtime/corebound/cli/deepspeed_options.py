"""Flags of DeepSpeed's launcher on how much is told, and those that mean nothing here: each of them says why."""

from __future__ import annotations

from typing import Any

import click

from corebound import logs
from corebound.config import env
from corebound.config.suggest import require_choice
from corebound.errors import ConfigError
from corebound.logs import get_logger

_log = get_logger(__name__)

# Flag -> what to do in its place.
UNSUPPORTED = {
    "--elastic_training": "a job keeps its ranks from start to end: leave it out, and start anew with other hosts",
    "--min_elastic_nodes": "a job keeps its ranks from start to end: say how many hosts with --num_nodes",
    "--max_elastic_nodes": "a job keeps its ranks from start to end: say how many hosts with --num_nodes",
    "--autotuning": "`corebound plan --model M` predicts times and memory, `corebound bench` measures them",
}


def unset_if_minus_one(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Return None for -1, which is how DeepSpeed's flags say that nothing was given."""
    return None if value == -1 else value


def set_log_level(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Set the level of the messages of launcher, agents and ranks.

    Raises: ConfigError for another level.
    """
    if value is None:
        return
    level = "error" if value == "critical" else require_choice("level", value, env.LOG_LEVELS, where="--log_level")
    env.put("COREBOUND_LOG_LEVEL", level)
    logs.setup(level)


def set_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Show errors only."""
    if value:
        set_log_level(ctx, param, "error")


def say_no_effect(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Warn of --no_ssh_check: there is no check of its own that could be left out."""
    if value:
        _log.warning("--no_ssh_check has no effect: hosts are not tried beforehand, starting their agents is the check")


def refuse(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Raise ConfigError for a flag that asks for what Corebound does not do, unless it has DeepSpeed's default."""
    if value not in (None, False, -1, ""):
        flag = param.opts[0]
        raise ConfigError(f"{flag}: Corebound has no such thing", hint=UNSUPPORTED[flag])
