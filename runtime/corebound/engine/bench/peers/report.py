"""Writes what `corebound bench peers` found as Markdown, with plots beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from corebound.engine.bench.peers.catalog import PEERS
from corebound.engine.bench.peers.plots import Bar, bar_chart
from corebound.engine.bench.session import OURS

_METHOD = """\
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


def write_report(results: Sequence[dict[str, Any]], output: Path) -> list[Path]:
    """Write the report and its plots, which go to a folder of its name, and return what was written."""
    plots: dict[str, str] = {}
    text = render(results, plots, folder=output.stem)
    folder = output.parent / output.stem
    folder.mkdir(parents=True, exist_ok=True)
    written = [output]
    output.write_text(text, encoding="utf-8")
    for name, svg in plots.items():
        (folder / name).write_text(svg, encoding="utf-8")
        written.append(folder / name)
    return written


def render(results: Sequence[dict[str, Any]], plots: dict[str, str], *, folder: str) -> str:
    """Return the report; `plots` is filled with the charts that it shows, by file name."""
    parts = ["# Benchmarks", "Measured and written by:", _commands(results)]
    for result in results:
        parts += _run(result, plots, folder)
    return "\n\n".join([*parts, _METHOD])


def _commands(results: Sequence[dict[str, Any]]) -> str:
    return "\n".join(f"    {result['command']}" for result in results)


def _run(result: dict[str, Any], plots: dict[str, str], folder: str) -> list[str]:
    shape, rows = result["shape"], result["rows"]
    parts = [f"## {shape}, {result['date']}", _machine(result["machine"]), _conditions(result)]
    prompts = sorted({row["num_prompt_tokens"] for row in rows})
    single = [row for row in rows if row["batch_size"] == 1]
    for length in prompts:
        found = [row for row in single if row["num_prompt_tokens"] == length]
        parts += [f"### Decode, batch 1, after a prompt of {length} tokens", _decode(found)]
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
        parts += [f"### First token, prompt of {length} tokens", _prefill(found)]
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
    ranks = _ranks(single)
    parts += ["### One and two ranks", ranks] if ranks else []
    batches = sorted({row["batch_size"] for row in rows})
    if len(batches) > 1:
        short = [row for row in rows if row["num_prompt_tokens"] == prompts[0]]
        parts += [f"### Batches, prompts of {prompts[0]} tokens", _batches(short, batches)]
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
    if result.get("all_reduce"):
        parts += ["### All-reduce, two processes", _all_reduce(result["all_reduce"])]
    if result["comparisons"]:
        parts += ["### Tokens that agree", _agreement(result["comparisons"])]
    if result["failures"]:
        parts += ["### Not measured", _failures(result["failures"])]
    return parts


def _machine(machine: dict[str, Any]) -> str:
    rows = [
        ("processor", machine["processor"] or "unknown"),
        ("instruction set", machine["isa"]),
        (
            "cores, sockets, NUMA nodes",
            f"{machine['num_cores']}, {machine['num_sockets']}, {machine['num_numa_nodes']}",
        ),
        ("last-level cache", f"{machine['last_level_cache_bytes'] / 2**20:.0f} MiB"),
        ("memory", f"{machine['memory_bytes'] / 2**30:.0f} GiB"),
        ("software", f"Linux {machine['kernel']}, Python {machine['python']}, torch {machine['torch']}"),
    ]
    return markdown_table(("machine", ""), rows)


def _conditions(result: dict[str, Any]) -> str:
    reads = [reading["read_gb_per_s"] for reading in result["readings"]]
    products = [reading["gemm_gflop_per_s"] for reading in result["readings"]]
    load = result["load"]
    return (
        f"{result['num_rounds']} rounds. Read bandwidth {_span(reads, 1)} GB/s, bfloat16 GEMM peak "
        f"{_span(products, 0)} GFLOP/s (median, and range over {len(reads)} readings). Other processes took "
        f"{load['other_share']:.0%} of the processors' time, the hypervisor {load['steal_share']:.0%}."
    )


def _span(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _decode(rows: Iterable[dict[str, Any]]) -> str:
    header = (
        "engine",
        "weights",
        "ranks x threads",
        "next token, ms",
        "p10",
        "p90",
        "p99",
        "tokens/s",
        "GB/s",
        "of bandwidth",
        "memory, GiB",
    )
    ordered = sorted(rows, key=lambda row: (_WIDTHS.get(row["dtype"], 0), row["next_token_ms"]))
    return markdown_table(
        header,
        [
            (
                *_who(row),
                f"{row['next_token_ms']:.2f}",
                *(f"{row[f'next_token_p{p}_ms']:.2f}" for p in (10, 90, 99)),
                f"{row['decode_tokens_per_s']:.1f}",
                f"{row['read_gb_per_s']:.1f}",
                f"{row['fraction_of_ceiling']:.2f}",
                f"{row['peak_rss_bytes'] / 2**30:.2f}",
            )
            for row in ordered
        ],
    )


# In the order of the tables.
_WIDTHS = {"float32": 1, "bfloat16": 2, "float16": 3, "int8": 4, "int4": 5}


def _prefill(rows: Iterable[dict[str, Any]]) -> str:
    ordered = sorted(rows, key=lambda row: (_WIDTHS.get(row["dtype"], 0), row["first_token_ms"]))
    return markdown_table(
        ("engine", "weights", "ranks x threads", "first token, ms", "GFLOP/s", "of GEMM peak"),
        [
            (
                *_who(row),
                f"{row['first_token_ms']:.1f}",
                f"{row['prefill_gflop_per_s']:.0f}",
                f"{row['prefill_fraction_of_gemm']:.2f}",
            )
            for row in ordered
        ],
    )


def _ranks(rows: Sequence[dict[str, Any]]) -> str:
    """Return how engines fare that were measured on one rank and on two, by dtype and prompt."""
    lines = []
    for one in rows:
        if one["num_ranks"] != 1:
            continue
        for two in rows:
            same = all(one[key] == two[key] for key in ("dtype", "num_prompt_tokens"))
            if two["num_ranks"] == 2 and same and two["engine"] in (one["engine"], f"{one['engine']}_tp"):
                lines.append(
                    (
                        title_of(one["engine"]),
                        one["dtype"],
                        one["num_prompt_tokens"],
                        f"1 x {one['num_threads']}, 2 x {two['num_threads']}",
                        f"{one['first_token_ms']:.1f}, {two['first_token_ms']:.1f}",
                        f"{one['first_token_ms'] / two['first_token_ms']:.2f}",
                        f"{one['next_token_ms']:.2f}, {two['next_token_ms']:.2f}",
                        f"{one['next_token_ms'] / two['next_token_ms']:.2f}",
                    )
                )
    header = (
        "engine",
        "weights",
        "prompt",
        "ranks x threads",
        "first token, ms",
        "times as fast",
        "next token, ms",
        "times as fast",
    )
    return markdown_table(header, lines) if lines else ""


def _batches(rows: Sequence[dict[str, Any]], batches: Sequence[int]) -> str:
    """Return tokens a second of each engine by batch size."""
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for row in rows:
        found.setdefault(_who(row), {})[row["batch_size"]] = row["decode_tokens_per_s"]
    lines = [
        (*who, *(f"{speeds[batch]:.1f}" if batch in speeds else "-" for batch in batches))
        for who, speeds in found.items()
    ]
    header = ("engine", "weights", "ranks x threads", *(f"batch {batch}, tokens/s" for batch in batches))
    return markdown_table(header, lines)


def _all_reduce(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        (
            size_name(row["bytes"]),
            f"{_provider(row['provider'])} ({row['entry']})",
            *(f"{row[f'p{p}_us']:.2f}" for p in (50, 10, 90, 99)),
        )
        for row in sorted(rows, key=lambda row: (row["bytes"], row["p50_us"]))
    ]
    return markdown_table(("bfloat16", "provider (entry)", "median, us", "p10", "p90", "p99"), lines)


def _agreement(comparisons: Sequence[dict[str, Any]]) -> str:
    lines = {
        (
            title_of(one["with"]),
            one["dtype"],
            one["num_prompt_tokens"],
            f"{one['num_equal_tokens']} of {one['num_new_tokens']}",
        )
        for one in comparisons
        if one["batch_size"] == 1
    }
    said = "How many new tokens are ours before the first that is not; random weights leave many choices close to even."
    return f"{said}\n\n" + markdown_table(("engine", "weights", "prompt", "tokens"), sorted(lines))


def _provider(name: str) -> str:
    return title_of(name) if name in PEERS else {"shm": title_of(OURS)}.get(name, name)


def _failures(failures: Sequence[dict[str, Any]]) -> str:
    lines = [(title_of(one["engine"]), one["dtype"], one["reason"]) for one in failures]
    return markdown_table(("engine", "weights", "reason"), lines)


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
            label=f"{title_of(row['engine'])}, {format_of(row)}"
            + (f", {row['num_ranks']} ranks" * (row["engine"] == OURS)),
            value=value(row),
            is_ours=row["engine"] == OURS,
        )
        for row in rows
    ]
    if not bars:
        return []
    plots[name] = bar_chart(title, bars, digits=digits, mark=mark)
    return [f"![{title}]({folder}/{name})"]


def _label(row: dict[str, Any]) -> str:
    words = [title_of(row["engine"]), format_of(row)]
    # The titles of the others say it.
    if row["engine"] == OURS:
        words.append("1 rank" if row["num_ranks"] == 1 else f"{row['num_ranks']} ranks")
    return ", ".join(words)


def _who(row: dict[str, Any]) -> tuple[str, ...]:
    version = f" {row['version']}" if row["version"] else ""
    return f"{title_of(row['engine'])}{version}", format_of(row), f"{row['num_ranks']} x {row['num_threads']}"


def title_of(engine: str) -> str:
    """Return what a report calls an engine."""
    return "Corebound" if engine == OURS else PEERS[engine].title


def format_of(row: dict[str, Any]) -> str:
    """Return what an engine calls its weights of a dtype."""
    return row["dtype"] if row["engine"] == OURS else str(PEERS[row["engine"]].formats[row["dtype"]])


def size_name(num_bytes: int) -> str:
    """Return a message size in KiB or MiB."""
    return f"{num_bytes >> 10} KiB" if num_bytes < 1 << 20 else f"{num_bytes >> 20} MiB"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; bars within cells are kept from ending them."""
    cells = [[str(cell).replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    lines = [list(header), ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
