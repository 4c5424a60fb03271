"""The part of a report that holds what `corebound bench peers` found, with its plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from corebound.engine.bench.markdown import date_and_machine, machine_table, span
from corebound.engine.bench.peers import tables
from corebound.engine.bench.peers.plots import Bar, bar_chart
from corebound.engine.bench.session import OURS

METHOD = """\
## How the figures are made

All engines continue the same prompts with the same random weights, converted once to each engine's own format, on all
cores; greedy, past any end of sequence. They take turns, each in a process of its own. Before and after each turn the
same cores read memory that no cache holds and multiply bfloat16 matrices. A fraction is a round's figure over the mean
of the readings right before and after it; the tables hold medians over the rounds, percentiles those of all steps.

- *next token* is the wait between two tokens while all prompts of a batch are continued; *GB/s* are the bytes of
  weights and 16-bit cache that such a step reads (each engine's own bytes, scales included) over that time.
- *first token* runs from submission until every prompt has its first token; *GFLOP/s* counts two operations for each
  weight and token, the head once a prompt, and causal attention. Its fraction is of the bfloat16 peak, also where an
  engine computes in int8.
- *memory* is the most that was resident in all processes of the engine, loading included.
"""


def render_run(result: dict[str, Any], plots: dict[str, str], folder: str) -> list[str]:
    """Return the parts of one run; `plots` is filled with the charts that they show, by file name."""
    parts = [f"## {tables.title_of_run(result)}, {date_and_machine(result)}", machine_table(result["machine"])]
    parts += [_conditions(result)]
    if result["rows"]:
        parts += _engines(result["shape"], result["rows"], plots, folder)
    if result.get("all_reduce"):
        parts += ["### All-reduce, two processes", tables.all_reduce_table(result["all_reduce"])]
    if result["comparisons"]:
        parts += ["### Tokens that agree", tables.agreement_table(result["comparisons"])]
    if result["failures"]:
        parts += ["### Not measured", tables.failures_table(result["failures"])]
    return parts


def _engines(shape: str, rows: list[dict[str, Any]], plots: dict[str, str], folder: str) -> list[str]:
    parts = []
    prompts = sorted({row["num_prompt_tokens"] for row in rows})
    single = [row for row in rows if row["batch_size"] == 1]
    for length in prompts:
        found = [row for row in single if row["num_prompt_tokens"] == length]
        parts += [f"### Decode, batch 1, after a prompt of {length} tokens", tables.decode_table(found)]
    decode = [row for row in single if row["num_prompt_tokens"] == prompts[0]]
    parts += _plot(
        plots,
        folder,
        f"{shape}-decode.svg",
        "Decode: fraction of the read bandwidth around it",
        decode,
        lambda row: float(row["fraction_of_ceiling"]),
        mark=1.0,
    )
    for length in prompts:
        found = [row for row in single if row["num_prompt_tokens"] == length]
        parts += [f"### First token, prompt of {length} tokens", tables.prefill_table(found)]
    prefill = [row for row in single if row["num_prompt_tokens"] == prompts[-1]]
    parts += _plot(
        plots,
        folder,
        f"{shape}-prefill.svg",
        f"Prefill of {prompts[-1]} tokens: fraction of the GEMM peak",
        prefill,
        lambda row: float(row["prefill_fraction_of_gemm"]),
        mark=1.0,
    )
    ranks = tables.ranks_table(single)
    parts += ["### One and two ranks", ranks] if ranks else []
    batches = sorted({row["batch_size"] for row in rows})
    if len(batches) > 1:
        short = [row for row in rows if row["num_prompt_tokens"] == prompts[0]]
        parts += [f"### Batches, prompts of {prompts[0]} tokens", tables.batches_table(short, batches)]
        largest = [row for row in short if row["batch_size"] == batches[-1]]
        parts += _plot(
            plots,
            folder,
            f"{shape}-batch.svg",
            f"Decode, batch {batches[-1]}: tokens/s",
            largest,
            lambda row: float(row["decode_tokens_per_s"]),
            digits=0,
        )
    return parts


def _conditions(result: dict[str, Any]) -> str:
    reads = [reading["read_gb_per_s"] for reading in result["readings"]]
    products = [reading["gemm_gflop_per_s"] for reading in result["readings"]]
    load = result["load"]
    ceilings = ""
    if reads:
        ceilings = (
            f"Read bandwidth {span(reads, 1)} GB/s, bfloat16 GEMM peak {span(products, 0)} GFLOP/s (median, and range "
            f"over {len(reads)} readings). "
        )
    return (
        f"{result['num_rounds']} rounds. {ceilings}Other processes took "
        f"{load['other_share']:.0%} of the processors' time, the hypervisor {load['steal_share']:.0%}."
    )


def _plot(
    plots: dict[str, str],
    folder: str,
    name: str,
    title: str,
    rows: Sequence[dict[str, Any]],
    value: Callable[[dict[str, Any]], float],
    *,
    digits: int = 2,
    mark: float | None = None,
) -> list[str]:
    bars = [
        Bar(
            label=f"{tables.title_of(row['engine'])}, {tables.format_of(row)}"
            + (f", {row['num_ranks']} ranks" * (row["engine"] == OURS)),
            value=value(row),
            is_ours=row["engine"] == OURS,
        )
        for row in rows
    ]
    if not bars:
        return []
    # Two runs of one shape, as of other dtypes, have their own charts.
    alike = sum(other.endswith(name) for other in plots)
    name = f"{alike + 1}-{name}" if alike else name
    plots[name] = bar_chart(title, bars, digits=digits, mark=mark)
    return [f"![{title}]({folder}/{name})"]
