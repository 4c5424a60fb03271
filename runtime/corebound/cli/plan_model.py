"""The part of `corebound plan` that predicts a model: options, ceilings and the table."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from corebound.cli.model_job import allow_pickled_weights_option
from corebound.cli.tables import count, format_bytes, render_table
from corebound.config.suggest import require_choice
from corebound.engine.bench.shapes import SHAPES
from corebound.engine.predict.ceilings import Ceilings, read_ceilings, write_ceilings
from corebound.engine.predict.measure import measure_ceilings
from corebound.engine.predict.model import Prediction, Workload
from corebound.engine.predict.splits import DTYPES, best, compare, rank_counts
from corebound.engine.predict.times import ASSUMED_NETWORK_GB_PER_S, ASSUMED_NETWORK_LATENCY_US
from corebound.errors import ConfigError
from corebound.launcher.plan import LaunchPlan
from corebound.models import describe, resolve_model
from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families import ARCHITECTURES
from corebound.quantization import is_scheme, parse_scheme
from corebound.topology import read_topology

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)
_OPTIONS = (
    click.option("--model", metavar="DIR|ID", help="Predict this model: a directory, an id of the hub, or `demo`."),
    click.option("--shape", metavar=f"{{{','.join(SHAPES)}}}", help="Predict a model of this shape."),
    click.option("--dtype", metavar="D", help="bfloat16 or a scheme such as int4:g64; by default all are compared."),
    click.option("--prompt-tokens", default=512, show_default=True, type=click.IntRange(1), metavar="N"),
    click.option(
        "--context", type=click.IntRange(1), metavar="N", help="Tokens cached at the next token; by default the prompt."
    ),
    click.option("--batch", default=1, show_default=True, type=click.IntRange(1), metavar="N", help="Prompts at once."),
    click.option("--ceilings", type=_FILE, metavar="FILE", help="Each host reaches what this file says."),
    click.option("--measure", type=_FILE, metavar="FILE", help="Measure this machine's ceilings into FILE."),
    allow_pickled_weights_option,
)
OPTION_NAMES = (
    "model",
    "shape",
    "dtype",
    "prompt_tokens",
    "context",
    "batch",
    "ceilings",
    "measure",
    "allow_pickled_weights",
)


def model_options(command: _Command) -> _Command:
    """Add the options that ask for a prediction."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def predict_model(
    whole: LaunchPlan,
    ranks_per_host: int | None,
    is_elsewhere: bool,
    *,
    model: str | None,
    shape: str | None,
    dtype: str | None,
    prompt_tokens: int,
    context: int | None,
    batch: int,
    ceilings: Path | None,
    measure: Path | None,
    allow_pickled_weights: bool = False,
) -> tuple[list[Prediction], Ceilings] | None:
    """Return the predictions that the options ask for and what they stand on, or None where they ask for none.

    `is_elsewhere` says that the plan is of another machine than this one.

    Raises: ConfigError, ModelLoadError, ShardingError, KernelError.
    """
    if model is not None and shape is not None:
        raise ConfigError("give either --model or --shape, found both")
    if ceilings is not None and measure is not None:
        raise ConfigError("--measure makes what --ceilings reads: give one of them")
    for name, value in (("--dtype", dtype), ("--context", context), ("--ceilings", ceilings)):
        if value is not None and model is None and shape is None:
            raise ConfigError(f"{name} says nothing without a model", hint="add --model DIR, or --shape llama-1.1b")
    _check_dtype(dtype)
    if model is None and shape is None and measure is None:
        return None
    if is_elsewhere and ceilings is None:
        raise ConfigError("--root shows another machine, whose ceilings cannot be measured here", hint="add --ceilings")
    architecture = _architecture(model, shape, allow_pickled_weights)
    limits = read_ceilings(ceilings) if ceilings else _measured(measure)
    if architecture is None:
        return None
    work = Workload(prompt_tokens=prompt_tokens, context=context or prompt_tokens, batch=batch)
    _check_positions(architecture, work)
    counts = [ranks_per_host] if ranks_per_host else rank_counts(limits.num_cores, limits.num_numa_nodes)
    if max(counts) > limits.num_cores:
        raise ConfigError(
            f"a prediction needs a core for each rank: found {max(counts)} ranks for {count(limits.num_cores, 'core')}",
            hint=f"use up to {limits.num_cores} ranks on a host",
        )
    return compare(architecture, [dtype] if dtype else DTYPES, counts, len(whole.nodes), limits, work), limits


def _check_dtype(dtype: str | None) -> None:
    if dtype is None or dtype == "bfloat16":
        return
    if not is_scheme(dtype):
        raise ConfigError(
            f"--dtype {dtype}: only what the native decoder computes with is predicted",
            hint="use bfloat16, int8, int4 or a scheme such as int4:g64:sym",
        )
    parse_scheme(dtype)


def _architecture(model: str | None, shape: str | None, allow_pickled: bool) -> Architecture | None:
    if shape is not None:
        require_choice("shape", shape, SHAPES, where="--shape")
        config = SHAPES[shape]
        return ARCHITECTURES[config["architectures"][0]](ConfigReader(Path(shape), dict(config)), shape)
    if model is None:
        return None
    return describe(resolve_model(model), tokenizer=False, allow_pickled_weights=allow_pickled)


def _check_positions(architecture: Architecture, work: Workload) -> None:
    longest = max(work.prompt_tokens, work.context)
    if architecture.max_positions is not None and longest > architecture.max_positions:
        raise ConfigError(
            f"{architecture.name} takes contexts of up to {architecture.max_positions} tokens, found {longest}",
            hint="lower --prompt-tokens or --context",
        )


def _measured(target: Path | None) -> Ceilings:
    started_s = time.monotonic()
    limits = measure_ceilings(read_topology())
    click.echo(f"ceilings of {limits.host} measured in {time.monotonic() - started_s:.1f} s", err=True)
    if target is not None:
        write_ceilings(target, limits)
        click.echo(f"ceilings written to {target}", err=True)
    return limits


def as_dict(rows: list[Prediction], limits: Ceilings) -> dict[str, Any]:
    """Return what --json prints beside the plan."""
    chosen = best(rows)
    return {
        "model": [row.to_json() | {"best": row is chosen} for row in rows],
        "ceilings": limits.to_json(),
    }


def render(rows: list[Prediction], limits: Ceilings) -> str:
    """Return the table, the best split and what it stands on."""
    chosen = best(rows)
    table = render_table(
        ("ranks", "dtype", "first ms", "next ms", "memory/rank", "memory/host", "first bound by", "next bound by"),
        [
            (
                row.num_ranks,
                row.dtype,
                round(row.first_token.total_s * 1e3, 1),
                round(row.next_token.total_s * 1e3, 2),
                format_bytes(row.rank_bytes),
                format_bytes(row.host_bytes),
                row.first_token.bound_by,
                row.bound_by,
            )
            for row in rows
        ],
    )
    if chosen is None:
        verdict = f"none fits: {format_bytes(limits.memory_bytes)} are available on each host"
    else:
        verdict = (
            f"best: {count(chosen.num_ranks, 'rank')} of {chosen.dtype}, a token every "
            f"{chosen.next_token.total_s * 1e3:.2f} ms, bound by {chosen.bound_by}"
        )
    cores = f"{count(limits.num_cores, 'core')} ({limits.isa})"
    source = f"each host: {cores} like {limits.host}, reading {limits.read_gb_per_s:.1f} GB/s"
    lines = [table, "", verdict, source]
    if any(row.num_hosts > 1 for row in rows) and not (limits.network_latency_us and limits.network_gb_per_s):
        lines.append(
            f"assumed between hosts: {ASSUMED_NETWORK_LATENCY_US:g} us and {ASSUMED_NETWORK_GB_PER_S:g} GB/s; "
            "network_latency_us and network_gb_per_s in the file of --ceilings say what is true"
        )
    return "\n".join(lines)
