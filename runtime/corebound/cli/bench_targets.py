"""`corebound bench targets`: every promised figure that needs no other engine, beside the limit it is held against."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from corebound.cli.bench_model import benchmark_model_dir
from corebound.cli.tables import render_table
from corebound.config.suggest import require_choice
from corebound.engine.bench import results as files
from corebound.engine.bench.load import LoadWatch
from corebound.engine.bench.peers import machine
from corebound.engine.bench.shapes import SHAPES
from corebound.engine.bench.targets.report import HEADER, cells_of
from corebound.engine.bench.targets.run import Run
from corebound.engine.bench.targets.settings import LINES, Settings
from corebound.errors import ConfigError
from corebound.topology import read_topology

_DEFAULTS = Settings()
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--only", metavar="LINE[,LINE]", help=f"Of {', '.join(LINES)}.  [all]")
@click.option("--shapes", default=",".join(_DEFAULTS.shapes), show_default=True, metavar="SHAPE[,SHAPE]")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds; figures are medians.")
@click.option("--context", default=_DEFAULTS.context, show_default=True, type=click.IntRange(1), metavar="N")
@click.option(
    "--prompt-tokens", default=_DEFAULTS.prompt_tokens, show_default=True, type=click.IntRange(2), metavar="N"
)
@click.option("--new-tokens", default=_DEFAULTS.new_tokens, show_default=True, type=click.IntRange(8), metavar="N")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where models of a shape are kept.", metavar="DIR")
@click.option("--results", type=_FILE, help="Write the JSON there, after each group of lines.", metavar="FILE")
@click.option("--from-results", type=_FILE, help="Measure nothing: print these earlier results.", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def targets(
    only: str | None,
    shapes: str,
    rounds: int,
    context: int,
    prompt_tokens: int,
    new_tokens: int,
    cache_dir: Path | None,
    results: Path | None,
    from_results: Path | None,
    as_json: bool,
) -> int:
    """Measure every promised figure that needs no other engine, beside the limit that it is held against.

    Models are loaded once and do their turns in rounds; before and after a turn the same cores read memory and multiply
    bfloat16 matrices, and a ratio is that of one round. Two ranks and one, or beams and a batch, take short turns with
    each other instead. A promise is kept when the median of the rounds keeps it. What this machine cannot show is in
    the table with the reason. All lines take an hour and more on two cores.

    \b
    Lines:
      decode, context     share of the read bandwidth: batch 1, and after a long prompt
      prefill             share of the bfloat16 GEMM peak
      ranks               two ranks against one, and on a model that fits the caches
      allreduce           8 KiB against the floor; larger ones and other engines': `corebound bench peers`
      beams, batches      beam 4 against batch 4; tokens a second of batches of 1 to 64
      memory, load        against the bytes of the checkpoint, and `cat` of its files
      plan                what `corebound plan` predicts against what is measured
      busy                a step while another process takes one core
      quality             perplexity and logits of the demo model with quantized weights

    \b
    Examples:
      corebound bench targets --results reports/targets.json
      corebound bench targets --only decode,prefill --rounds 3 --json
      corebound bench targets --shapes llama-tiny --context 1500 --rounds 1    a try in some minutes
      corebound bench targets --from-results reports/targets.json
    """  # noqa: D301  click reads the \b
    if from_results is not None:
        found = files.read(from_results)
        if found.get("benchmark") != files.TARGETS:
            raise ConfigError(f"{from_results}: expected results of `corebound bench targets`")
    else:
        settings = Settings(
            shapes=tuple(require_choice("shape", name, SHAPES, where="--shapes") for name in shapes.split(",")),
            prompt_tokens=prompt_tokens,
            context=context,
            new_tokens=new_tokens,
            num_rounds=rounds,
        )
        if results is not None:
            files.require_writable(results)
        found = measure(_chosen(only), settings, results, cache_dir)
    click.echo(json.dumps(found, indent=2) if as_json else table(found))
    return 0


def measure(lines: list[str], settings: Settings, results: Path | None, cache_dir: Path | None) -> dict[str, Any]:
    """Return everything that one run found, as JSON values; `results` holds what there is after each group of lines."""
    topology, watch, started_s = read_topology(), LoadWatch(), time.monotonic()
    facts = {
        "schema": files.SCHEMA,
        "benchmark": files.TARGETS,
        "command": _command(lines, settings),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine.describe(topology),
        "num_rounds": settings.num_rounds,
    }

    def gather(run: Run) -> dict[str, Any]:
        found = facts | {
            "rows": [finding.row() for finding in run.found],
            "readings": [vars(reading) for reading in run.readings],
            "turns": {"repeated": run.num_repeated, "moved": run.num_moved},
            "pairs": {"done": run.num_pairs, "still": run.num_still_pairs},
            "quality": run.quality,
            "load": watch.finish().to_json(),
            "elapsed_s": round(time.monotonic() - started_s, 1),
        }
        if results is not None:
            files.write(results, found)
        return found

    run = Run(
        topology=topology,
        settings=settings,
        lines=lines,
        model_dir=lambda shape: benchmark_model_dir(None, shape, cache_dir),
        announce=lambda text: click.echo(text, err=True),
        on_group=gather,
    )
    run.all_groups()
    return gather(run)


def _chosen(only: str | None) -> list[str]:
    if only is None:
        return list(LINES)
    return [require_choice("line", name, LINES, where="--only") for name in only.split(",")]


def _command(lines: list[str], settings: Settings) -> str:
    """Return the words that measure this again, without places of this machine."""
    words = ["corebound bench targets", f"--shapes {','.join(settings.shapes)}", f"--rounds {settings.num_rounds}"]
    if lines != list(LINES):
        words.append(f"--only {','.join(lines)}")
    for flag in ("prompt_tokens", "context", "new_tokens"):
        if getattr(settings, flag) != getattr(_DEFAULTS, flag):
            words.append(f"--{flag.replace('_', '-')} {getattr(settings, flag)}")
    return " ".join(words)


def table(found: dict[str, Any]) -> str:
    """Return the table for humans."""
    load = found["load"]
    rows = [(row["line"], *cells_of(row)) for row in found["rows"]]
    # One that a whole line has in common is said once.
    notes = dict.fromkeys(
        ": ".join([row["line"], *([] if row["found"] else [row["what"]]), row["note"]])
        for row in found["rows"]
        if row["note"]
    )
    busy = (
        f"{found['num_rounds']} rounds in {found['elapsed_s'] / 60:.1f} minutes; other processes took "
        f"{load['other_share']:.0%} of the processors' time, the hypervisor {load['steal_share']:.0%}"
    )
    return "\n".join([render_table(("line", *HEADER), rows, max_width=72), "", *notes, busy])
