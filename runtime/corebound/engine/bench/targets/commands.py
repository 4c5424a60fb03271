"""The lines that commands of their own measure: sums, quality, loading."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from corebound.engine.bench.load_times import LoadTimes, measure_load
from corebound.engine.bench.placements import on_cpus, placements
from corebound.engine.bench.targets.finding import Finding, Measured, NotMeasured, promise, ratios_of
from corebound.errors import CoreboundError
from corebound.models import describe
from corebound.topology import Topology

ALL_REDUCE_BOUND = 1.5
LOAD_BOUND = 1.5
_SUM_BYTES = 8 << 10
_BLOCKS_PER_ROUND = 10
Announce = Callable[[str], None]


def all_reduce(topology: Topology, num_rounds: int, announce: Announce) -> list[Finding | NotMeasured]:
    """Return the 8 KiB all-reduce of two ranks against the floor of the same launch, in each placement there is."""
    pairs = placements(topology)
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    for number in range(num_rounds):
        for name, cpus in pairs.items():
            words = ("allreduce", "--bytes", str(_SUM_BYTES), "--num-ranks", "2", "--rounds", str(_BLOCKS_PER_ROUND))
            rounds[name].append(_sum_and_floor(_printed(words, cpus)["rows"]))
            announce(f"round {number + 1} of {num_rounds}: all-reduce, {name}: {rounds[name][-1][0]:.2f} us")
    found: list[Finding | NotMeasured] = [sum_finding(name, values) for name, values in rounds.items()]
    for name, why in (("near", "no two cores share a last-level cache"), ("far", "there is one last-level cache")):
        if name not in pairs:
            what = f"8 KiB, bfloat16, {name} cores"
            promised = promise("at most", ALL_REDUCE_BOUND)
            reason = f"this machine has no such pair: {why}"
            found.append(NotMeasured(line="allreduce", what=what, promised=promised, reason=reason))
    return found


def _sum_and_floor(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    ours = [row for row in rows if (row["provider"], row["entry"]) == ("shm", "native")]
    if not ours:
        raise CoreboundError("bench allreduce: no row of shared memory, so there is nothing to hold against the floor")
    return float(ours[0]["p50_us"]), float(ours[0]["floor_us"])


def sum_finding(name: str, values: Sequence[tuple[float, float]]) -> Finding:
    """Return the finding of one placement from the microseconds of every round: ours and the floor."""
    sums, floors = [ours for ours, _ in values], [floor for _, floor in values]
    return Finding(
        line="allreduce",
        what=f"8 KiB, bfloat16, 2 ranks, {name} cores",
        sense="at most",
        bound=ALL_REDUCE_BOUND,
        ratios=ratios_of(sums, floors),
        measured=Measured(name="all-reduce", unit="us", rounds=sums),
        limit=Measured(name="floor", unit="us", rounds=floors),
    )


def load(model_dir: Path, dtypes: Sequence[str], num_rounds: int, announce: Announce) -> list[Finding | NotMeasured]:
    """Return the time to load against `cat`, of the checkpoint and of what `corebound shard` makes of it."""
    found: list[Finding | NotMeasured] = []
    for dtype in dtypes:
        announce(f"{model_dir.name}: loading {dtype} in turns with cat")
        found.append(load_finding(f"{dtype}, from the checkpoint", measure_load(model_dir, dtype, 1, num_rounds)))
        found.append(_load_written(model_dir, dtype, num_rounds))
    return found


def _load_written(model_dir: Path, dtype: str, num_rounds: int) -> Finding:
    # Here, because it imports torch.
    from corebound.models.shard_writing import write_shards

    with tempfile.TemporaryDirectory(prefix="corebound-load-") as parent:
        output = Path(parent) / model_dir.resolve().name
        write_shards(describe(model_dir, tokenizer=False), output, 1, dtype)
        return load_finding(f"{dtype}, written for its rank", measure_load(output, "bfloat16", 1, num_rounds))


def load_finding(what: str, times: LoadTimes) -> Finding:
    """Return the finding of one form of the files; its note has the time that fresh memory alone takes."""
    kept = times.kept
    load_s, cat_s = [one.load_s for one in kept], [one.cat_s for one in kept]
    return Finding(
        line="load",
        what=what,
        sense="at most",
        bound=LOAD_BOUND,
        ratios=ratios_of(load_s, cat_s),
        measured=Measured(name="load", unit="s", rounds=load_s),
        limit=Measured(name="cat", unit="s", rounds=cat_s),
        note=(
            f"{what}: {times.num_bytes / 1e9:.2f} GB in the page cache; getting and giving back as much fresh memory "
            "as the weights take, before each load and not counted in it, took "
            f"{statistics.median(one.memory_s for one in kept):.2f} s; {_steady_note(times)}"
        ),
    )


def _steady_note(times: LoadTimes) -> str:
    if not times.kept[0].is_steady:
        return f"none of the {len(times.rounds)} rounds was steady, so all count"
    if len(times.kept) == len(times.rounds):
        return f"all {len(times.rounds)} rounds were steady"
    of_all = f"the median of all is {times.ratio_of_all:.2f}"
    return f"{len(times.kept)} of {len(times.rounds)} rounds were steady and count, {of_all}"


def quality(announce: Announce) -> tuple[list[Finding | NotMeasured], dict[str, Any]]:
    """Return how perplexity of the demo model grows by scheme, and everything `corebound bench quality` prints."""
    announce("quality of the demo model")
    printed = _printed(("quality", "--model", "demo"))
    return quality_findings(printed["rows"]), printed


def quality_findings(rows: Sequence[dict[str, Any]]) -> list[Finding | NotMeasured]:
    """Return the perplexity of every way to store the weights over that of the first, float32."""
    plain = rows[0]["perplexity"]
    return [
        Finding(
            line="quality",
            what=f"demo, {row['scheme']}: perplexity over that of {rows[0]['scheme']}",
            sense="at most",
            bound=None,
            ratios=[row["perplexity"] / plain],
            measured=Measured(name="perplexity", unit="", rounds=[row["perplexity"]]),
            limit=Measured(name=rows[0]["scheme"], unit="", rounds=[plain]),
        )
        for row in rows[1:]
    ]


def _printed(words: Sequence[str], cpus: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the JSON of a benchmark of ours, run as a command, on some CPUs.

    Raises: CoreboundError when it fails.
    """
    command = [sys.executable, "-m", "corebound", "bench", *words, "--json"]
    with nullcontext() if cpus is None else on_cpus(cpus):
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode != 0:
        raise CoreboundError(f"bench {words[0]} ended with exit code {process.returncode}", hint="the lines above say")
    printed: dict[str, Any] = json.loads(process.stdout)
    return printed
