"""`corebound bench generate`: prefill and decode of a model, against the machine's ceiling and against transformers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from corebound.cli.bench_model import benchmark_model_dir
from corebound.cli.tables import format_bytes, render_table
from corebound.config.suggest import require_choice
from corebound.engine.bench.job import BenchJob, BenchReport, read_report
from corebound.engine.bench.shapes import SHAPES
from corebound.engine.request import require_dtype
from corebound.errors import ConfigError, CoreboundError, LaunchError
from corebound.kernels.memory_probe import bytes_beyond_caches, measure_read
from corebound.launcher import LaunchSpec, launch
from corebound.models import describe
from corebound.models.stored import scheme_to_apply, weights_name
from corebound.topology import Topology, read_topology

_RANK_COMMAND = (sys.executable, "-m", "corebound.engine.bench.rank_main")
_PEER_COMMAND = (sys.executable, "-m", "corebound.engine.bench.transformers_main")
PEERS = ("transformers",)
_NUM_WARM_UP_TOKENS = 8
_COLUMNS = (
    ("engine", "engine", None),
    ("dtype", "dtype", None),
    ("ranks", "num_ranks", None),
    ("threads", "num_threads", None),
    ("first ms", "first_token_ms", 1),
    ("next ms", "next_token_ms", 2),
    ("tokens/s", "tokens_per_s", 2),
    ("read GB/s", "read_gb_per_s", 1),
    ("ceiling GB/s", "ceiling_gb_per_s", 1),
    ("of ceiling", "fraction_of_ceiling", 2),
)


@dataclass
class _Series:
    """The rounds of one engine; figures of the row are medians over them."""

    engine: str
    num_ranks: int
    reports: list[BenchReport] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Return the median of a figure over the rounds."""
        return float(statistics.median(getattr(report, name) for report in self.reports))


@click.command()
@click.option("--model", metavar="DIR|ID", help="Directory of a Hugging Face model, an id of the hub, or `demo`.")
@click.option("--shape", metavar=f"{{{','.join(SHAPES)}}}", help="A random model of this shape, written once.")
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--num-ranks", default=2, show_default=True, type=click.IntRange(1), help="Ranks on this machine.")
@click.option("--prompt-tokens", default=32, show_default=True, type=click.IntRange(1), metavar="N")
@click.option("--new-tokens", default=48, show_default=True, type=click.IntRange(2), metavar="N")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds; figures are medians.")
@click.option("--compare", metavar=f"{{{','.join(PEERS)}}}", help="Alternate with another engine, same weights.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where models of a shape are kept.", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def generate(
    model: str | None,
    shape: str | None,
    dtype: str,
    num_ranks: int,
    prompt_tokens: int,
    new_tokens: int,
    rounds: int,
    compare: str | None,
    cache_dir: Path | None,
    as_json: bool,
) -> int:
    """Measure prefill and decode of one prompt, and how much of the memory's read bandwidth decode reaches.

    Every round starts the ranks anew. The ceiling is what as many threads read from memory on the same cores, measured
    before and after each round. With --compare the rounds of both engines alternate, so that both see the same machine.

    \b
    Examples:
      corebound bench generate --model demo --num-ranks 2
      corebound bench generate --shape llama-1.1b --num-ranks 2 --compare transformers
    """  # noqa: D301  click reads the \b
    require_dtype(dtype)
    if compare is not None:
        require_choice("engine", compare, PEERS, where="--compare")
    model_dir = benchmark_model_dir(model, shape, cache_dir)
    description = describe(model_dir, tokenizer=False)
    scheme_to_apply(description, dtype)
    if description.shards is not None:
        description.shards.require_ranks(num_ranks)
        if compare is not None:
            raise ConfigError(f"--compare {compare}: reads checkpoints, and {model_dir} was written for our ranks")
    prompt = [3 + (7 * position) % (description.vocab_size - 3) for position in range(prompt_tokens)]
    ours, theirs = _Series("corebound", num_ranks), _Series(compare or "", 1)
    ceilings: list[float] = []
    topology = read_topology()
    with tempfile.TemporaryDirectory(prefix="corebound-bench-") as directory:
        job = BenchJob(
            model_dir=str(model_dir.resolve()),
            dtype=dtype,
            prompt_token_ids=prompt,
            num_new_tokens=new_tokens,
            num_warm_up_tokens=_NUM_WARM_UP_TOKENS,
            report_path=str(Path(directory) / "report.json"),
            num_threads=len(topology.physical_cores()),
        )
        for index in range(rounds):
            ours.reports.append(_round(job, lambda: _run_ours(job, num_ranks)))
            cpus = ours.reports[-1].cpus or list(topology.allowed_cpus)
            ceilings.append(_ceiling(topology, cpus))
            if compare:
                theirs.reports.append(_round(job, lambda: _run_peer(job)))
                ceilings.append(_ceiling(topology, cpus))
            click.echo(f"round {index + 1} of {rounds}: {_line(ours, theirs)}", err=True)
    result = _result(
        description.name,
        weights_name(description, dtype),
        [series for series in (ours, theirs) if series.reports],
        ceilings,
    )
    click.echo(json.dumps(result, indent=2) if as_json else _table(result))
    return 0


def _round(job: BenchJob, run: Callable[[], None]) -> BenchReport:
    path = Path(job.report_path)
    path.unlink(missing_ok=True)
    run()
    if not path.is_file():
        raise CoreboundError("a round ended without a report")
    return read_report(path)


def _run_ours(job: BenchJob, num_ranks: int) -> None:
    # None binds where every rank can have a core of its own.
    spec = LaunchSpec(
        command=_RANK_COMMAND, num_accelerators=num_ranks, bind_cores_to_rank=None, rank0_stdin=job.to_bytes()
    )
    if (code := launch(spec)) != 0:
        raise LaunchError(f"the ranks of a round ended with exit code {code}", hint="the lines above say why")


def _run_peer(job: BenchJob) -> None:
    done = subprocess.run(_PEER_COMMAND, input=job.to_bytes(), stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        tail = done.stderr.decode(errors="replace").strip().splitlines()[-5:]
        raise CoreboundError("the other engine failed: " + "\n".join(tail))


def _ceiling(topology: Topology, cpus: Sequence[int]) -> float:
    allowed = sorted(set(cpus) & os.sched_getaffinity(0))
    size = bytes_beyond_caches(topology, allowed)
    return measure_read(allowed, bytes_per_thread=size, num_repetitions=5).median_gb_per_s


def _line(ours: _Series, theirs: _Series) -> str:
    parts = [
        f"{series.reports[-1].next_token_ms:.2f} ms ({series.engine})" for series in (ours, theirs) if series.reports
    ]
    return "next token " + ", ".join(parts)


def _result(model: str, dtype: str, series: Sequence[_Series], ceilings: Sequence[float]) -> dict[str, Any]:
    weight_bytes = series[0].reports[0].weight_bytes_per_token or 0
    rows = [_row(model, dtype, item, weight_bytes, statistics.median(ceilings)) for item in series]
    result: dict[str, Any] = {"rows": rows}
    if len(series) > 1:
        ratios = [
            theirs.next_token_ms / ours.next_token_ms
            for ours, theirs in zip(series[0].reports, series[1].reports, strict=True)
        ]
        result["comparison"] = {
            "with": series[1].engine,
            "decode_speed_ratio": round(statistics.median(ratios), 3),
            "ratio_per_round": [round(ratio, 3) for ratio in ratios],
        }
    return result


def _row(model: str, dtype: str, series: _Series, weight_bytes: int, ceiling: float) -> dict[str, Any]:
    next_ms = series.median("next_token_ms")
    read_gb_per_s = weight_bytes / next_ms / 1e6
    return {
        "engine": series.engine,
        "model": model,
        "dtype": dtype,
        "num_ranks": series.num_ranks,
        "num_threads": int(series.median("num_threads")),
        "first_token_ms": round(series.median("first_token_ms"), 3),
        "next_token_ms": round(next_ms, 3),
        "tokens_per_s": round(series.median("tokens_per_s"), 3),
        "weight_bytes_per_token": weight_bytes,
        "read_gb_per_s": round(read_gb_per_s, 3),
        "ceiling_gb_per_s": round(ceiling, 3),
        "fraction_of_ceiling": round(read_gb_per_s / ceiling, 4),
        "peak_rss_bytes": int(series.median("peak_rss_bytes")),
    }


def _table(result: dict[str, Any]) -> str:
    cells = [
        [row[key] if digits is None else round(row[key], digits) for _, key, digits in _COLUMNS]
        + [format_bytes(row["peak_rss_bytes"])]
        for row in result["rows"]
    ]
    lines = [result["rows"][0]["model"], render_table([*(title for title, _, _ in _COLUMNS), "peak memory"], cells)]
    comparison = result.get("comparison")
    if comparison:
        rounds = ", ".join(f"{ratio:.2f}" for ratio in comparison["ratio_per_round"])
        lines.append(
            f"decode is {comparison['decode_speed_ratio']:.2f} times as fast as {comparison['with']} ({rounds})"
        )
    return "\n".join(lines)
