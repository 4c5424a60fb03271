"""The `corebound` command: finds the verb, prints errors, returns exit codes."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from corebound import __version__, logs
from corebound.cli.lazy_group import LazyGroup
from corebound.config import env
from corebound.errors import EXIT_CONFIG, ConfigError, CoreboundError, HostError
from corebound.logs import get_logger

_log = get_logger(__name__)

# Verb -> (module that holds its click command under the same name, one line of help). Modules load on use, so that
# torch is imported only by the verbs that compute.
VERBS: dict[str, tuple[str, str]] = {
    "bench": ("corebound.cli.bench", "Measure this machine and Corebound on it, against its own ceiling."),
    "doctor": ("corebound.cli.doctor", "Check what this machine can do and say what would make it better."),
    "generate": ("corebound.cli.generate", "Continue prompts with a model, on core-bound ranks."),
    "k8s": ("corebound.cli.k8s", "Render, check, apply and follow jobs on Kubernetes."),
    "plan": ("corebound.cli.plan", "Show what a launch would do, without doing it."),
    "run": ("corebound.cli.run", "Run a script on core-bound ranks."),
    "serve": ("corebound.cli.serve", "Answer completion requests over HTTP, on core-bound ranks."),
    "shard": ("corebound.cli.shard", "Write a model once in the form that its ranks read without converting."),
    "topology": ("corebound.cli.topology", "Show CPUs, sockets, NUMA nodes, caches and instruction sets."),
}


@click.command(cls=LazyGroup, table=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="corebound")
def cli() -> None:
    """Run large language models on the sockets of ordinary x86 servers.

    \b
    Examples:
      corebound doctor
      corebound generate --model demo --num-accelerators 2 --prompt "The old ship"
      corebound run --bind_cores_to_rank script.py
    """  # noqa: D301  click reads the \b
    logs.setup(env.settings().log_level)
    for name in env.unknown_variables():
        _log.warning("environment variable %s has no effect: Corebound knows no such name", name)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; every expected error is printed, not raised."""
    try:
        result: Any = cli.main(args=argv, prog_name="corebound", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show(sys.stderr)
        return EXIT_CONFIG
    except click.ClickException as error:
        click.echo(_as_ours(error).render(), err=True)
        return EXIT_CONFIG
    except CoreboundError as error:
        click.echo(error.render(), err=True)
        return error.exit_code
    except PermissionError as error:
        if error.filename is None:
            raise
        # Any path that a user names may lie where they may not look; where it came from is for --log-level debug.
        _log.debug("refused here", exc_info=True)
        refused = HostError(
            f"{error.filename}: permission denied for this user",
            hint="name a path that it may use, or change its rights",
        )
        click.echo(refused.render(), err=True)
        return refused.exit_code
    return result if isinstance(result, int) else 0


def _as_ours(error: click.ClickException) -> ConfigError:
    """Return a mistake that click found in the form of all other errors."""
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "corebound"
    return ConfigError(message[:1].lower() + message[1:], hint=f"`{command} --help` shows what is accepted")


def _fill_closed_descriptors() -> None:
    """Open the null device in place of closed standard streams, whose numbers the next file would take."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w"))


def entry_point() -> None:
    """The console script."""
    _fill_closed_descriptors()
    sys.exit(main())
