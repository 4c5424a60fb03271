"""The `corebound` command: finds the verb, prints errors, returns exit codes."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from corebound import __version__, logs
from corebound.config import env
from corebound.config.suggest import nearest
from corebound.errors import EXIT_CONFIG, CoreboundError

# Verb -> (module that holds its click command under the same name, one line of help). Modules load on use, so that
# torch is imported only by the verbs that compute.
VERBS: dict[str, tuple[str, str]] = {
    "bench": ("corebound.cli.bench", "Measure this machine and Corebound on it, against its own ceiling."),
    "doctor": ("corebound.cli.doctor", "Check what this machine can do and say what would make it better."),
    "generate": ("corebound.cli.generate", "Continue prompts with a model, on core-bound ranks."),
    "plan": ("corebound.cli.plan", "Show what a launch would do, without doing it."),
    "run": ("corebound.cli.run", "Run a script on core-bound ranks."),
    "topology": ("corebound.cli.topology", "Show CPUs, sockets, NUMA nodes, caches and instruction sets."),
}


class _Verbs(click.Group):
    """A group that imports a verb's module only when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(VERBS[cmd_name][0]), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{VERBS[cmd_name][0]}.{cmd_name} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, VERBS[name][1]) for name in sorted(VERBS)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = nearest(args[0], VERBS)
            hint = f" Did you mean `{close}`?" if close else f" Commands: {', '.join(sorted(VERBS))}."
            raise click.UsageError(f"{error.message.rstrip('.')}.{hint}", ctx=error.ctx) from error


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="corebound")
def cli() -> None:
    r"""Run large language models on the sockets of ordinary x86 servers.

    \b
    Examples:
      corebound doctor
      corebound generate --model demo --num-accelerators 2 --prompt "The old ship"
      corebound run --bind_cores_to_rank script.py
    """
    logs.setup(env.settings().log_level)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; every expected error is printed, not raised."""
    try:
        result: Any = cli.main(args=argv, prog_name="corebound", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.UsageError as error:
        error.show(sys.stderr)
        return EXIT_CONFIG
    except click.ClickException as error:
        error.show(sys.stderr)
        return EXIT_CONFIG
    except CoreboundError as error:
        click.echo(error.render(), err=True)
        return error.exit_code
    return result if isinstance(result, int) else 0


def entry_point() -> None:
    """The console script."""
    sys.exit(main())
