"""corebound bench machine: all ceilings of this machine in one run."""

from __future__ import annotations

import json
import statistics
from typing import Any

import click

from corebound.cli.tables import render_table
from corebound.engine.bench.load import LoadWatch
from corebound.kernels.gemm_probe import DTYPES, SIZE, GemmPeak, measure_gemm
from corebound.kernels.latency_probe import LineLatency, core_pairs, measure_latency
from corebound.kernels.memory_probe import ReadBandwidth, bytes_beyond_caches, core_sets, measure_read
from corebound.topology import Topology, format_cpu_list, read_topology

_READS_PER_ROUND = 3
_PRODUCTS_PER_ROUND = 3


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of everything.")
@click.option("--size", default=SIZE, show_default=True, type=click.IntRange(256, 16384), help="Rows of the matrices.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def machine(rounds: int, size: int, as_json: bool) -> None:
    """Measure what bounds inference here: reads from memory, products of matrices, cache lines between cores.

    Reads bound decode, products bound prefill, and lines bound how fast cores can wait for each other. They take turns,
    so that all see the same machine; figures are medians and bests over the rounds.

    \b
    Examples:
      corebound bench machine
      corebound bench machine --json | jq '.gemm[] | select(.dtype == "bfloat16")'
      taskset -c 0-7 corebound bench machine    the first eight CPUs only
    """  # noqa: D301  click reads the \b
    watch, topology = LoadWatch(), read_topology()
    num_cores = len(topology.physical_cores())
    reads: list[list[ReadBandwidth]] = []
    products: list[list[GemmPeak]] = []
    lines: list[list[LineLatency]] = []
    for number in range(rounds):
        reads.append([_read(topology, cpus) for cpus in core_sets(topology)])
        products.append(
            [
                measure_gemm(dtype, num_threads, size=size, num_repetitions=_PRODUCTS_PER_ROUND)
                for dtype in DTYPES
                for num_threads in sorted({1, num_cores})
            ]
        )
        lines.append([measure_latency(*pair) for pair in core_pairs(topology)])
        click.echo(f"round {number + 1} of {rounds}: {reads[-1][-1].median_gb_per_s:.1f} GB/s", err=True)
    result = {
        "memory": [_memory_row(rows) for rows in zip(*reads, strict=True)],
        "gemm": [_gemm_row(rows) for rows in zip(*products, strict=True)],
        "latency": [_latency_row(rows) for rows in zip(*lines, strict=True)],
        "load": watch.finish().to_json(),
    }
    click.echo(json.dumps(result, indent=2) if as_json else render(result))


def _read(topology: Topology, cpus: tuple[int, ...]) -> ReadBandwidth:
    return measure_read(cpus, bytes_per_thread=bytes_beyond_caches(topology, cpus), num_repetitions=_READS_PER_ROUND)


def _memory_row(rounds: tuple[ReadBandwidth, ...]) -> dict[str, Any]:
    return {
        "num_threads": len(rounds[0].cpus),
        "cpus": list(rounds[0].cpus),
        "read_gb_per_s": round(statistics.median(r.median_gb_per_s for r in rounds), 2),
        "best_gb_per_s": round(max(r.best_gb_per_s for r in rounds), 2),
        "loop": max(rounds, key=lambda r: r.best_gb_per_s).loop,
        "huge_page_fraction": round(min(r.huge_page_fraction for r in rounds), 3),
    }


def _gemm_row(rounds: tuple[GemmPeak, ...]) -> dict[str, Any]:
    best = max(rounds, key=lambda r: r.best_gflop_per_s)
    return {
        "dtype": best.dtype,
        "num_threads": best.num_threads,
        "size": best.size,
        "gflop_per_s": round(statistics.median(r.median_gflop_per_s for r in rounds), 1),
        "best_gflop_per_s": round(best.best_gflop_per_s, 1),
        "layout": best.layout,
    }


def _latency_row(rounds: tuple[LineLatency, ...]) -> dict[str, Any]:
    return {
        "cpus": list(rounds[0].cpus),
        "one_way_ns": round(statistics.median(r.median_ns for r in rounds), 1),
        "best_ns": round(min(r.best_ns for r in rounds), 1),
    }


def render(result: dict[str, Any]) -> str:
    """Return the tables for humans."""
    memory = render_table(
        ("threads", "CPUs", "read GB/s", "best GB/s", "loop"),
        [
            (row["num_threads"], format_cpu_list(row["cpus"]), row["read_gb_per_s"], row["best_gb_per_s"], row["loop"])
            for row in result["memory"]
        ],
    )
    gemm = render_table(
        ("product of", "threads", "GFLOP/s", "best GFLOP/s", "second matrix"),
        [
            (row["dtype"], row["num_threads"], row["gflop_per_s"], row["best_gflop_per_s"], row["layout"])
            for row in result["gemm"]
        ],
    )
    latency = render_table(
        ("CPUs", "one way ns", "best ns"),
        [(format_cpu_list(row["cpus"]), row["one_way_ns"], row["best_ns"]) for row in result["latency"]],
    )
    load = result["load"]
    busy = (
        f"other processes took {load['other_share']:.0%} of the processors' time, the hypervisor "
        f"{load['steal_share']:.0%}; load average {load['load_average_1min']}"
    )
    return "\n\n".join([memory, gemm, *([latency] if result["latency"] else []), busy])
