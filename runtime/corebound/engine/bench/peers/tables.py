"""The tables of a report on engines that took turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from corebound.engine.bench.markdown import markdown_table, size_name
from corebound.engine.bench.peers.catalog import PEERS
from corebound.engine.bench.session import OURS

# In the order of the tables.
_WIDTHS = {"float32": 1, "bfloat16": 2, "float16": 3, "int8": 4, "int4": 5}


def decode_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return next token, speed and memory, wide weights first."""
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


def prefill_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return first token and share of the GEMM peak, wide weights first."""
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


def ranks_table(rows: Sequence[dict[str, Any]]) -> str:
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


def batches_table(rows: Sequence[dict[str, Any]], batches: Sequence[int]) -> str:
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


def all_reduce_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return everyone's sums by size and placement."""
    lines = [
        (
            size_name(row["bytes"]),
            row.get("placement", ""),
            f"{_provider(row['provider'])} ({row['entry']})",
            *(f"{row[f'p{p}_us']:.2f}" for p in (50, 10, 90, 99)),
        )
        for row in sorted(rows, key=lambda row: (row["bytes"], row.get("placement", ""), row["p50_us"]))
    ]
    table = markdown_table(("bfloat16", "cores", "provider (entry)", "median, us", "p10", "p90", "p99"), lines)
    if {row.get("placement") for row in rows} == {"near"}:
        table += "\n\nThis machine has one last-level cache, so there are no far cores to sum between."
    return table


def agreement_table(comparisons: Sequence[dict[str, Any]]) -> str:
    """Return how far the tokens of the others agree with ours."""
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


def failures_table(failures: Sequence[dict[str, Any]]) -> str:
    """Return who was not measured, and why."""
    lines = [(title_of(one["engine"]), one["dtype"], one["reason"]) for one in failures]
    return markdown_table(("engine", "weights", "reason"), lines)


def _who(row: dict[str, Any]) -> tuple[str, ...]:
    version = f" {row['version']}" if row["version"] else ""
    return f"{title_of(row['engine'])}{version}", format_of(row), f"{row['num_ranks']} x {row['num_threads']}"


def title_of_run(result: dict[str, Any]) -> str:
    """Return what a report calls a run: by the shape of its model, where it had one."""
    return str(result["shape"]) if "shape" in result else "Sums of two ranks"


def title_of(engine: str) -> str:
    """Return what a report calls an engine."""
    return "Corebound" if engine == OURS else PEERS[engine].title


def format_of(row: dict[str, Any]) -> str:
    """Return what an engine calls its weights of a dtype."""
    return row["dtype"] if row["engine"] == OURS else str(PEERS[row["engine"]].formats[row["dtype"]])
