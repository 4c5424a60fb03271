"""`corebound bench memory`: the read bandwidth of memory, which is the ceiling of decode."""

from __future__ import annotations

import json

import click

from corebound.cli.tables import render_table
from corebound.kernels.memory_probe import ReadBandwidth, bytes_beyond_caches, core_sets, measure_read
from corebound.topology import format_cpu_list, read_topology

_MIN_BYTES = 1 << 20  # of each thread


@click.command()
@click.option("--repetitions", default=9, show_default=True, type=click.IntRange(1), help="Reads of each buffer.")
@click.option("--whole-machine", is_flag=True, help="Measure all allowed cores together only.")
@click.option(
    "--max-gib",
    type=click.FloatRange(0, min_open=True),
    metavar="GIB",
    help="Read at most so much; below eight times the caches the figure is too high.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def memory(repetitions: int, whole_machine: bool, max_gib: float | None, as_json: bool) -> None:
    """Measure how fast memory is read by one core, by the cores of each NUMA node and by all allowed cores.

    Every token that is decoded reads all weights once, so this is the most that decode can reach. The figure is the
    median of the repetitions; on a machine that others share, compare it with the best. Several ways to read are tried
    first, and the fastest is used.

    \b
    Examples:
      corebound bench memory
      corebound bench memory --json | jq '.rows[-1].read_gb_per_s'
      corebound bench memory --whole-machine --max-gib 2 --repetitions 3    beside other work
      taskset -c 0-7 corebound bench memory    the first eight CPUs only
    """  # noqa: D301  click reads the \b
    topology = read_topology()
    results = []
    sets = core_sets(topology)
    for cpus in sets[-1:] if whole_machine else sets:
        size = bytes_beyond_caches(topology, cpus)
        if max_gib is not None:
            size = min(size, max(_MIN_BYTES, int(max_gib * (1 << 30)) // len(cpus)))
        results.append(measure_read(cpus, bytes_per_thread=size, num_repetitions=repetitions))
    click.echo(json.dumps({"rows": [_row(result) for result in results]}, indent=2) if as_json else _table(results))


def _row(result: ReadBandwidth) -> dict[str, object]:
    return {
        "num_threads": len(result.cpus),
        "cpus": list(result.cpus),
        "read_gb_per_s": round(result.median_gb_per_s, 2),
        "best_gb_per_s": round(result.best_gb_per_s, 2),
        "bytes_per_thread": result.bytes_per_thread,
        "loop": result.loop,
        "huge_page_fraction": round(result.huge_page_fraction, 3),
    }


def _table(results: list[ReadBandwidth]) -> str:
    header = ("threads", "CPUs", "read GB/s", "best GB/s", "huge pages", "loop")
    rows = [
        (
            len(r.cpus),
            format_cpu_list(r.cpus),
            round(r.median_gb_per_s, 1),
            round(r.best_gb_per_s, 1),
            f"{r.huge_page_fraction:.0%}",
            r.loop,
        )
        for r in results
    ]
    return render_table(header, rows)
