"""A group of commands whose modules are imported on use, so that torch loads only for what computes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from corebound.config.suggest import nearest


class LazyGroup(click.Group):
    """A click group over a table: command name -> (module that holds it under that name, one line of help)."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], noun: str = "command", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table
        self._noun = noun

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help text."""
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, its module imported now, or None."""
        if cmd_name not in self._table:
            return None
        module = self._table[cmd_name][0]
        command = getattr(importlib.import_module(module), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{cmd_name} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._table[name][1]) for name in sorted(self._table)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return what to run.

        Raises: click.UsageError with the nearest name for one that is not in the table.
        """
        if args and not args[0].startswith("-") and args[0] not in self._table:
            close = nearest(args[0], self._table)
            hint = f"Did you mean `{close}`?" if close else f"Known: {', '.join(sorted(self._table))}."
            raise click.UsageError(f"No such {self._noun} {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)
