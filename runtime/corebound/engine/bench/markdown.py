"""Markdown for reports."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def size_name(num_bytes: int) -> str:
    """Return a message size in KiB or MiB."""
    return f"{num_bytes >> 10} KiB" if num_bytes < 1 << 20 else f"{num_bytes >> 20} MiB"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; bars within cells are kept from ending them."""
    cells = [[str(cell).replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    lines = [list(header), ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def date_and_machine(result: dict[str, Any]) -> str:
    """Return what tells the runs on a page apart: the day, and the processor with its best instruction set."""
    machine = result["machine"]
    return f"{result['date']}, {machine['processor']}, {machine['isa']}"


def machine_table(machine: dict[str, Any]) -> str:
    """Return what decides speed on the machine that was measured."""
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


def span(values: Sequence[float], digits: int) -> str:
    """Return the median of some readings, and their range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
