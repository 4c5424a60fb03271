"""`corebound bench`: what this machine can do, and how close Corebound comes to it."""

from __future__ import annotations

import importlib

import click

from corebound.config.suggest import nearest

# Subcommand -> (module that holds its click command as `command`, one line of help). Loaded on use: some need torch.
BENCHMARKS: dict[str, tuple[str, str]] = {
    "allreduce": ("corebound.cli.bench_allreduce", "Time the sum over ranks, beside the floor and gloo."),
    "generate": ("corebound.cli.bench_generate", "Time prefill and decode of a model."),
    "memory": ("corebound.cli.bench_memory", "Measure the read bandwidth of memory, the ceiling of decode."),
}


class _Benchmarks(click.Group):
    """A group that imports a benchmark's module only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(BENCHMARKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in BENCHMARKS:
            return None
        command = importlib.import_module(BENCHMARKS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{BENCHMARKS[cmd_name][0]}.command is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, BENCHMARKS[name][1]) for name in sorted(BENCHMARKS)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = nearest(args[0], BENCHMARKS)
            hint = f" Did you mean `{close}`?" if close else f" Benchmarks: {', '.join(sorted(BENCHMARKS))}."
            error.message = f"{error.message.rstrip('.')}.{hint}"
            raise


@click.command(cls=_Benchmarks)
def bench() -> None:
    """Measure this machine and Corebound on it, against its own ceiling."""
