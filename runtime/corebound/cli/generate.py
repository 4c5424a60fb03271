"""corebound generate: continue prompts on core-bound ranks."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from corebound.cli.launch_options import launch_options, spec_from_options
from corebound.cli.model_job import allow_pickled_weights_option, check_load, check_ranks, model_job
from corebound.config import env
from corebound.engine.request import DTYPE_CHOICES, SamplingParams
from corebound.errors import EXIT_CONFIG, ConfigError
from corebound.launcher import LaunchOutcome, run_launch
from corebound.launcher.launch import report
from corebound.models import describe, resolve_model
from corebound.models.resolve import DEMO
from corebound.topology.native_report import native_active_isa

RANK_COMMAND = (sys.executable, "-m", "corebound.engine.rank_main")


def _dashes(name: str) -> str:
    return name.replace("_", "-")


@click.command(context_settings={"token_normalize_func": _dashes, "help_option_names": ["-h", "--help"]})
@click.option("--model", metavar="DIR|ID", help="Directory of a Hugging Face model, an id of the hub, or `demo`.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Text to continue; may be repeated.")
@click.option("--prompt-file", type=click.Path(path_type=Path), metavar="F", help="File with one prompt a line.")
@click.option("--dtype", default="bfloat16", show_default=True, metavar=f"{{{','.join(DTYPE_CHOICES)}}}")
@click.option("--max-new-tokens", type=int, default=64, show_default=True, metavar="N", help="Most tokens to add.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=int, metavar="K", help="Sample from the K likeliest tokens.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Sample from the likeliest P of probability.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: repeat less.")
@click.option("--seed", type=int, metavar="N", help="Same seed, same text, on any number of ranks.")
@click.option("--num-beams", type=int, default=1, show_default=True, metavar="N", help="Beams of a beam search.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the text before this; may be repeated.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's end-of-sequence token.")
@click.option("--kv-cache-gib", type=float, metavar="GIB", help="KV cache of each rank; by default from free memory.")
@click.option("--no-bind", is_flag=True, help="Do not give each rank cores of its own.")
@click.option("--json", "as_json", is_flag=True, help="Print outputs, times and ranks as JSON.")
@allow_pickled_weights_option
@launch_options
def generate(
    model: str | None,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    dtype: str,
    kv_cache_gib: float | None,
    no_bind: bool,
    allow_pickled_weights: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Continue prompts with a model, on core-bound ranks that share its weights.

    The text goes to standard output, times and everything else to standard error.

    \b
    Examples:
      corebound generate --model demo --prompt "The old ship"
      corebound generate --model ./llama --num-accelerators 2 --temperature 0.8 --top-p 0.9 --seed 1 --prompt "Hello"
      corebound generate --model ./bloom --prompt-file prompts.txt --json
    """  # noqa: D301  click reads the \b
    started_unix_s = time.time()
    names = SamplingParams.__dataclass_fields__.keys()
    params = SamplingParams(**{name: options.pop(name) for name in names if name in options})
    check_load(dtype, kv_cache_gib)
    texts = _prompts(prompts, prompt_file)
    model_dir = resolve_model(_named(model))
    description = describe(model_dir, allow_pickled_weights=allow_pickled_weights)
    job = {
        **model_job(model_dir, dtype, kv_cache_gib, allow_pickled_weights=allow_pickled_weights),
        "prompts": texts,
        "params": params.to_json(),
        "as_json": as_json,
        "started_unix_s": started_unix_s,
    }
    if no_bind:
        options["bind_cores_to_rank"] = False
    spec = spec_from_options(RANK_COMMAND, bind_by_default=True, rank0_stdin=json.dumps(job).encode(), **options)
    check_ranks(description, spec, dtype)
    forced_isa = env.settings().isa
    if forced_isa is not None:
        native_active_isa(forced_isa)
    outcome = run_launch(spec)
    if not _has_explained(outcome):
        report(outcome)
    return outcome.exit_code


def _has_explained(outcome: LaunchOutcome) -> bool:
    """Return whether there is no failure of a rank to report: it has said why, or the reader of its text has left."""
    failure = outcome.failure
    if failure is None or failure.rank is None:
        return False
    if failure.rank == 0 and failure.exit_code == 128 + signal.SIGPIPE:
        return True
    return failure.exit_code == EXIT_CONFIG and bool(failure.tail)


def _named(model: str | None) -> str:
    if model is None:
        click.echo("no --model given: using the bundled demo model", err=True)
        return DEMO
    return model


def _prompts(prompts: tuple[str, ...], prompt_file: Path | None) -> list[str]:
    if prompt_file is None:
        if not prompts:
            raise ConfigError("no prompt given", hint='write --prompt "The old ship", or --prompt-file F')
        return list(prompts)
    if prompts:
        raise ConfigError("--prompt and --prompt-file cannot be used together", hint="leave out one of them")
    try:
        lines = prompt_file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--prompt-file {prompt_file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt-file {prompt_file}: not UTF-8 at byte {error.start}") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"--prompt-file {prompt_file}: no prompt in it", hint="write one prompt a line")
    return found
