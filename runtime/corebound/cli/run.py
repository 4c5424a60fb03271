"""corebound run: a script, a module or a program on core-bound ranks."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from corebound.cli.launch_options import launch_options, spec_from_options
from corebound.config import env
from corebound.errors import ConfigError
from corebound.launcher.envfile import env_files, read_env_files
from corebound.launcher.launch import launch
from corebound.launcher.spec import LaunchSpec
from corebound.logs import get_logger

_log = get_logger(__name__)

# Everything after the script belongs to the script.
CONTEXT = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}


@click.command(context_settings=CONTEXT)
@launch_options
@click.argument("script", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(script: str | None, args: tuple[str, ...], **options: Any) -> int:
    """Run SCRIPT with ARGS on every rank; flags of the launch come before SCRIPT.

    A Python script or module is passed --local_rank=N first, as DeepSpeed does; --no_local_rank leaves it out. Its
    environment has RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. The exit code is that of the first rank
    that fails, 128+n if signal n killed it.

    \b
    Examples:
      corebound run --bind_cores_to_rank train.py --epochs 3
      corebound run --num_accelerators 2 --module my.package.main
      corebound run --no_python ./program
    """  # noqa: D301  click reads the \b
    if script is None:
        raise ConfigError("no script given", hint="write `corebound run [flags] SCRIPT [ARGS...]`")
    return launch(script_spec(script, args, options))


def script_spec(script: str, args: tuple[str, ...], options: dict[str, Any]) -> LaunchSpec:
    """Return the spec that runs a script.

    Raises: ConfigError when the script does not exist, or flags contradict each other.
    """
    module, no_python = options.pop("module"), options.pop("no_python")
    no_local_rank = options.pop("no_local_rank")
    if module and no_python:
        raise ConfigError(
            "--module and --no_python cannot be used together: a module is run by Python", hint="leave out one of them"
        )
    if no_python:
        if shutil.which(script) is None:
            raise ConfigError(f"program {script}: not found or not executable")
        command: tuple[str, ...] = (script,)
    elif module:
        command = (sys.executable, "-u", "-m", script)
    else:
        _require_file(script)
        command = (sys.executable, "-u", script)
    return spec_from_options(
        command,
        arguments=args,
        pass_local_rank=not (no_python or no_local_rank),
        file_environ=_file_environ(),
        **options,
    )


def _file_environ() -> dict[str, str]:
    """Return the variables of .corebound_env and .deepspeed_env, and say which there are."""
    environ = env.snapshot()
    paths = env_files(environ, Path.cwd())
    values = read_env_files(paths)
    if values:
        _log.info("for all ranks, from %s: %s", ", ".join(map(str, paths)), ", ".join(sorted(values)))
    replaced = sorted(name for name, value in values.items() if environ.get(name, value) != value)
    if replaced:
        _log.warning("%s: the files' values take the place of those in the environment", ", ".join(replaced))
    return values


def _require_file(script: str) -> None:
    if Path(script).is_dir() and not (Path(script) / "__main__.py").is_file():
        raise ConfigError(f"script {script}: expected a file, found a directory")
    if not Path(script).exists():
        hint = "flags of the launch come before the script" if script.startswith("-") else None
        raise ConfigError(
            f"script {script}: no such file", hint=hint or "for a module add --module, for a program --no_python"
        )
