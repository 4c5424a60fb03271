"""`corebound bench`: what this machine can do, and how close Corebound comes to it."""

from __future__ import annotations

import importlib

import click

from corebound.config.suggest import nearest

# Subcommand -> (module that holds its click command under the same name, one line of help). Some need torch.
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
        module = BENCHMARKS[cmd_name][0]
        command = getattr(importlib.import_module(module), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{cmd_name} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, BENCHMARKS[name][1]) for name in sorted(BENCHMARKS)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in BENCHMARKS:
            close = nearest(args[0], BENCHMARKS)
            hint = f"Did you mean `{close}`?" if close else f"Benchmarks: {', '.join(sorted(BENCHMARKS))}."
            raise click.UsageError(f"No such benchmark {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=_Benchmarks)
def bench() -> None:
    """Measure this machine and Corebound on it, against its own ceiling."""
