"""The all-reduce part of `corebound bench peers`: our sums over two ranks and other engines', in turns."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from corebound.cli import bench_allreduce
from corebound.cli.launch_options import launch_options
from corebound.cli.tables import format_bytes, render_table
from corebound.engine.bench.peers import process
from corebound.engine.bench.peers.adapters.protocol import BenchJob
from corebound.engine.bench.peers.catalog import PEERS
from corebound.engine.bench.placements import on_cpus, placements
from corebound.engine.bench.series import percentile
from corebound.errors import CommError, ConfigError
from corebound.topology import read_topology

SIZES = (8 << 10, 64 << 10, 1 << 20, 32 << 20)
NUM_RANKS = 2
_DTYPE = "bfloat16"
_SUMS = f"all-reduce, {_DTYPE}"  # in place of the weights of who failed
_BLOCKS_PER_TURN = 10
_FIGURES = tuple(f"p{p}_us" for p in (10, 50, 90, 99))


def measure(
    names: list[str], folder: Path, num_rounds: int, announce: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of everyone's sums, medians over the rounds, and who is missing or failed and why."""
    rounds: dict[tuple[str, str, str, int], list[dict[str, float]]] = {}
    summing = _summing(names)
    peers = [name for name in summing if PEERS[name].python(folder) is not None]
    failures = [_failure(name, PEERS[name].why_missing(folder)) for name in summing if name not in peers]
    for number, (placement, cpus) in itertools.product(range(num_rounds), _pairs().items()):
        with on_cpus(cpus):
            for row in _ours():
                rounds.setdefault((placement, row["provider"], row["entry"], row["bytes"]), []).append(row)
            for name in list(peers):
                try:
                    found = _theirs(name, folder)
                except process.PeerError as error:
                    peers.remove(name)
                    failures.append(_failure(name, str(error)))
                    announce(f"all-reduce: {name}: {error}")
                    continue
                for num_bytes, figures in found.items():
                    rounds.setdefault((placement, name, "python", num_bytes), []).append(figures)
        announce(f"all-reduce, {placement} cores: round {number + 1} of {num_rounds}")
    rows = [
        {"provider": provider, "entry": entry, "dtype": _DTYPE, "bytes": num_bytes, "num_ranks": NUM_RANKS}
        | {"placement": placement}
        | {name: round(statistics.median(one[name] for one in found), 3) for name in _FIGURES}
        for (placement, provider, entry, num_bytes), found in rounds.items()
    ]
    return sorted(rows, key=lambda row: row["bytes"]), failures


def require_sums(names: list[str]) -> None:
    """Check that each of these engines has sums of its own to time. Raises: ConfigError naming those that have."""
    able = [name for name in PEERS if _summing([name])]
    for name in names:
        if name not in able:
            raise ConfigError(f"--peers {name}: has no sums of its own", hint=f"those that have: {', '.join(able)}")


def table(result: dict[str, Any]) -> str:
    """Return everyone's sums for humans, the fastest of each size first."""
    rows = sorted(result["all_reduce"], key=lambda row: (row["bytes"], row["placement"], row["p50_us"]))
    header = ("size", "cores", "provider", "entry", "p10 us", "p50 us", "p90 us", "p99 us")
    cells = [
        (format_bytes(row["bytes"]), row["placement"], row["provider"], row["entry"], *(row[key] for key in _FIGURES))
        for row in rows
    ]
    lines = [f"all-reduce, {_DTYPE}, {NUM_RANKS} ranks", render_table(header, cells)]
    lines += [f"{item['engine']}: {item['reason']}" for item in result["failures"] if item["dtype"] == _SUMS]
    return "\n".join(lines)


def _summing(names: list[str]) -> list[str]:
    """Return the entries, each once, that time the sums of these engines: an engine has them on two ranks."""
    wanted = {PEERS[name].environment for name in names}
    return [name for name, peer in PEERS.items() if peer.sum_adapter and peer.environment in wanted]


def _failure(name: str, reason: str) -> dict[str, Any]:
    return {"engine": name, "dtype": _SUMS, "reason": reason}


def _pairs() -> dict[str, tuple[int, ...]]:
    """Return the CPUs of each placement; all of a machine that has no two cores."""
    return dict(placements(read_topology())) or {"shared": tuple(sorted(os.sched_getaffinity(0)))}


def _ours() -> list[dict[str, Any]]:
    request = {"bytes": list(SIZES), "dtype": _DTYPE, "rounds": _BLOCKS_PER_TURN, "fake_hosts": []}
    result, exit_code = bench_allreduce.run_ranks(request, _default_options() | {"num_accelerators": NUM_RANKS})
    if exit_code:
        raise CommError(f"the ranks of a round of sums ended with exit code {exit_code}")
    return list(result["rows"])


def _default_options() -> dict[str, Any]:
    """Return what the launch flags are when none is given."""
    command = launch_options(click.Command("defaults", callback=lambda **_: None))
    return dict(command.make_context("defaults", []).params)


def _theirs(name: str, folder: Path) -> dict[int, dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="corebound-bench-") as scratch:
        job = BenchJob(
            model_dir="",
            dtype=_DTYPE,
            cases=[],
            num_warm_up_tokens=0,
            report_path=str(Path(scratch) / "sums.json"),
            num_threads=1,
            action="all_reduce",
            num_ranks=NUM_RANKS,
            message_bytes=list(SIZES),
        )
        report = process.time_sums(PEERS[name], folder, job)
    return {
        int(num_bytes): {f"p{p}_us": percentile(times, p) for p in (10, 50, 90, 99)}
        for num_bytes, times in report.times_us.items()
    }
