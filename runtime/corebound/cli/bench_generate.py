"""`corebound bench generate`: prefill and decode of a model, against the machine's ceilings and transformers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from corebound.cli.bench_model import benchmark_model_dir
from corebound.cli.tables import count, format_bytes, render_table
from corebound.config.suggest import require_choice
from corebound.engine.bench import series as measured
from corebound.engine.bench import session
from corebound.engine.bench.cases import make_cases
from corebound.engine.bench.load import LoadWatch
from corebound.engine.bench.peers.adapters.protocol import BenchJob
from corebound.engine.bench.peers.catalog import DEFAULT_FOLDER, PEERS
from corebound.engine.bench.ruler import Ruler
from corebound.engine.bench.shapes import SHAPES
from corebound.engine.bench.work import work_of
from corebound.engine.request import require_dtype
from corebound.errors import ConfigError
from corebound.models import ModelDescription, describe
from corebound.models.stored import scheme_to_apply
from corebound.topology import read_topology

COMPARABLE = ("transformers",)
NUM_WARM_UP_TOKENS = 8
_COLUMNS = (
    ("engine", "engine", None),
    ("dtype", "dtype", None),
    ("ranks", "num_ranks", None),
    ("threads", "num_threads", None),
    ("prompt", "num_prompt_tokens", None),
    ("batch", "batch_size", None),
    ("first ms", "first_token_ms", 1),
    ("GFLOP/s", "prefill_gflop_per_s", 0),
    ("of peak", "prefill_fraction_of_gemm", 2),
    ("next ms", "next_token_ms", 2),
    ("p99 ms", "next_token_p99_ms", 2),
    ("tokens/s", "decode_tokens_per_s", 2),
    ("read GB/s", "read_gb_per_s", 1),
    ("ceiling GB/s", "ceiling_gb_per_s", 1),
    ("of ceiling", "fraction_of_ceiling", 2),
)


class NumbersType(click.ParamType[tuple[int, ...]]):
    """Numbers of 1 or more, separated by commas: 1,4,16."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers, each once."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        if not all(word.isdecimal() and int(word) > 0 for word in words):
            self.fail(f"expected numbers of 1 or more such as 1,4,16, found {value!r}", param, ctx)
        return tuple(dict.fromkeys(map(int, words)))


@click.command()
@click.option("--model", metavar="DIR|ID", help="Directory of a Hugging Face model, an id of the hub, or `demo`.")
@click.option("--shape", metavar=f"{{{','.join(SHAPES)}}}", help="A random model of this shape, written once.")
@click.option("--dtype", default="bfloat16", show_default=True, metavar="NAME[,NAME]")
@click.option("--num-ranks", default=2, show_default=True, type=click.IntRange(1), help="Ranks on this machine.")
@click.option("--prompt-tokens", default="32", show_default=True, type=NumbersType(), metavar="N[,N]")
@click.option("--batch", default="1", show_default=True, type=NumbersType(), metavar="N[,N]", help="Prompts at a time.")
@click.option("--new-tokens", default=48, show_default=True, type=click.IntRange(2), metavar="N")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds; figures are medians.")
@click.option("--compare", metavar=f"{{{','.join(COMPARABLE)}}}", help="Alternate with another engine, same weights.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where models of a shape are kept.", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def generate(
    model: str | None,
    shape: str | None,
    dtype: str,
    num_ranks: int,
    prompt_tokens: tuple[int, ...],
    batch: tuple[int, ...],
    new_tokens: int,
    rounds: int,
    compare: str | None,
    cache_dir: Path | None,
    as_json: bool,
) -> int:
    """Measure prefill and decode, and how much of the machine's ceilings they reach.

    Every round starts the ranks anew and runs each prompt length with each batch size. Before and after it the same
    cores read memory, which bounds decode, and multiply bfloat16 matrices, which bounds prefill. With --compare the
    rounds of both engines alternate, so that both see the same machine.

    \b
    Examples:
      corebound bench generate --model demo --num-ranks 2
      corebound bench generate --shape llama-1.1b --num-ranks 2 --compare transformers
      corebound bench generate --shape llama-1.1b --prompt-tokens 32,512 --batch 1,4,16 --rounds 5
    """  # noqa: D301  click reads the \b
    dtypes = [require_dtype(name) for name in dtype.split(",")]
    if compare is not None:
        require_choice("engine", compare, COMPARABLE, where="--compare")
    directory = benchmark_model_dir(model, shape, cache_dir)
    _check(describe(directory, tokenizer=False), dtypes, num_ranks, compare)
    contenders = []
    for name in dtypes:
        contenders.append(session.our_ranks(name, num_ranks))
        if compare is not None:
            contenders.append(session.peer_engine(compare, PEERS[compare], name, DEFAULT_FOLDER))
    watch = LoadWatch()
    outcome = run(contenders, directory, prompt_tokens, batch, new_tokens, rounds)
    result = result_of(outcome) | {"load": watch.finish().to_json()}
    click.echo(json.dumps(result, indent=2) if as_json else table(result))
    return 0


def _check(description: ModelDescription, dtypes: Sequence[str], num_ranks: int, compare: str | None) -> None:
    """Check before any rank starts what a rank would refuse."""
    for dtype in dtypes:
        scheme_to_apply(description, dtype)
    if description.shards is not None:
        description.shards.require_ranks(num_ranks)
        if compare is not None:
            raise ConfigError(
                f"--compare {compare}: reads checkpoints, and {description.path} was written for our ranks"
            )


def run(
    contenders: Sequence[session.Contender],
    directory: Path,
    prompt_tokens: Sequence[int],
    batch: Sequence[int],
    new_tokens: int,
    rounds: int,
    *,
    batch_all_lengths: bool = True,
    on_round: Callable[[session.Outcome], object] | None = None,
) -> session.Outcome:
    """Return what rounds of these engines come to, on the model in `directory`.

    Without `batch_all_lengths` only the first length is measured in batches. `on_round` is called after each round.
    """
    description = describe(directory, tokenizer=False)
    topology = read_topology()
    with tempfile.TemporaryDirectory(prefix="corebound-bench-") as scratch:
        job = BenchJob(
            model_dir=str(directory.resolve()),
            dtype=contenders[0].dtype,
            cases=[
                case
                for case in make_cases(prompt_tokens, batch, new_tokens, description.vocab_size)
                if batch_all_lengths or case.batch_size == 1 or case.num_prompt_tokens == prompt_tokens[0]
            ],
            num_warm_up_tokens=NUM_WARM_UP_TOKENS,
            report_path=str(Path(scratch) / "report.json"),
            num_threads=len(topology.physical_cores()),
        )
        return session.take_turns(
            contenders,
            job,
            model=description.name,
            work=work_of(description),
            ruler=Ruler.of(topology),
            num_rounds=rounds,
            announce=lambda text: click.echo(text, err=True),
            on_round=on_round,
        )


def result_of(outcome: session.Outcome) -> dict[str, Any]:
    """Return rows, comparisons with ours, and failures, as JSON values."""
    comparisons = [
        measured.compare(ours, theirs)
        for ours in outcome.series
        if ours.engine == session.OURS
        for theirs in outcome.series
        if theirs.engine != session.OURS
        and (theirs.dtype, theirs.case) == (ours.dtype, ours.case)
        and len(theirs.samples) == len(ours.samples)
    ]
    result: dict[str, Any] = {
        "rows": [series.row() for series in outcome.series],
        "comparisons": comparisons,
        "failures": [vars(failure) for failure in outcome.failures],
    }
    if len(comparisons) == 1:
        result["comparison"] = comparisons[0]
    return result


def table(result: dict[str, Any]) -> str:
    """Return the tables for humans."""
    cells = [
        [row[key] if digits is None else round(row[key], digits or None) for _, key, digits in _COLUMNS]
        + [format_bytes(row["peak_rss_bytes"])]
        for row in result["rows"]
    ]
    lines = [result["rows"][0]["model"], render_table([*(title for title, _, _ in _COLUMNS), "peak memory"], cells)]
    for item in result["comparisons"]:
        rounds = ", ".join(f"{ratio:.2f}" for ratio in item["ratio_per_round"])
        lines.append(
            f"{count(item['num_ranks'], 'rank')}, {item['dtype']}, prompt {item['num_prompt_tokens']}, "
            f"batch {item['batch_size']}: "
            f"decode is {item['decode_speed_ratio']:.2f} times as fast as {item['with']} ({rounds})"
        )
    lines += [f"{item['engine']} {item['dtype']}: {item['reason']}" for item in result["failures"]]
    load = result["load"]
    lines.append(
        f"other processes took {load['other_share']:.0%} of the processors' time, the hypervisor "
        f"{load['steal_share']:.0%}"
    )
    return "\n".join(lines)
