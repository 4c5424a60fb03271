"""corebound serve: a model behind HTTP, on core-bound ranks."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from corebound.cli.launch_options import launch_options, spec_from_options
from corebound.cli.model_job import allow_pickled_weights_option, check_load, check_ranks, model_job
from corebound.engine.request import DTYPE_CHOICES
from corebound.errors import ConfigError
from corebound.launcher import run_launch
from corebound.launcher.launch import report
from corebound.models import describe, resolve_model

RANK_COMMAND = (sys.executable, "-m", "corebound.server.rank_main")


def _dashes(name: str) -> str:
    return name.replace("_", "-")


@click.command(context_settings={"token_normalize_func": _dashes, "help_option_names": ["-h", "--help"]})
@click.option(
    "--model", required=True, metavar="DIR|ID", help="Directory of a Hugging Face model, an id of the hub, or `demo`."
)
@click.option("--served-model-name", metavar="NAME", help="What clients call it; by default the last part of --model.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address of rank 0 to listen on."
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, metavar="N")
@click.option(
    "--drain-s", type=float, default=30.0, show_default=True, metavar="S", help="Time to finish when stopped."
)
@click.option("--dtype", default="bfloat16", show_default=True, metavar=f"{{{','.join(DTYPE_CHOICES)}}}")
@click.option("--kv-cache-gib", type=float, metavar="GIB", help="KV cache of each rank; by default from free memory.")
@click.option("--no-bind", is_flag=True, help="Do not give each rank cores of its own.")
@allow_pickled_weights_option
@launch_options
def serve(
    model: str,
    served_model_name: str | None,
    host: str,
    port: int,
    drain_s: float,
    dtype: str,
    kv_cache_gib: float | None,
    no_bind: bool,
    allow_pickled_weights: bool,
    **options: Any,
) -> int:
    """Answer completion requests over HTTP with a model whose weights core-bound ranks share.

    Paths: POST /v1/completions in the form of OpenAI's API, streaming included; GET /v1/models; GET /ready, which is
    200 while requests are taken; GET /health, which is 200 while all ranks answer. There is no authentication: listen
    on an address that only trusted clients reach, or put a proxy in front.

    SIGTERM or Ctrl-C drains: no more requests are taken, those that run are finished. If a rank or a host fails, the
    whole launch ends; a service manager restarts it.

    \b
    Examples:
      corebound serve --model demo --num-accelerators 2
      corebound serve --model /models/bloom --hostfile hosts --host 0.0.0.0 --port 8000
      curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
        -d '{"model": "demo", "prompt": "The old ship", "max_tokens": 32, "temperature": 0}'
    """  # noqa: D301  click reads the \b
    check_load(dtype, kv_cache_gib)
    if not 0 <= drain_s < float("inf"):
        raise ConfigError(f"--drain-s: expected seconds, 0 or more, found {drain_s}")
    model_dir = resolve_model(model)
    description = describe(model_dir, allow_pickled_weights=allow_pickled_weights)
    job = {
        **model_job(model_dir, dtype, kv_cache_gib, allow_pickled_weights=allow_pickled_weights),
        "served_model_name": served_model_name or Path(model).name or model,
        "host": host,
        "port": port,
    }
    if no_bind:
        options["bind_cores_to_rank"] = False
    spec = spec_from_options(RANK_COMMAND, bind_by_default=True, rank0_stdin=json.dumps(job).encode(), **options)
    spec = replace(spec, grace_s=drain_s)
    check_ranks(description, spec, dtype)
    outcome = run_launch(spec)
    report(outcome)
    # To be stopped is how a service ends well.
    if outcome.failure is None and outcome.interrupted in (signal.SIGTERM, signal.SIGINT):
        return 0
    return outcome.exit_code
