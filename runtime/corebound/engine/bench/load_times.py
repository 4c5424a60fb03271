"""Loading a model on ranks in turns with `cat` of its files: `python -m corebound.engine.bench.load_times` on each."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from corebound.comm import Collectives
from corebound.comm.rank_process import leave, run_rank
from corebound.engine.bench.page_cache import cached_share, drop_from_page_cache
from corebound.engine.job import read_job
from corebound.errors import CoreboundError, HostError, LaunchError
from corebound.kernels.latency_probe import are_alike, distance_ns
from corebound.launcher import LaunchSpec, launch
from corebound.models import describe
from corebound.models.stored import scheme_to_apply
from corebound.sharding import shard_plan
from corebound.topology import read_topology

if TYPE_CHECKING:
    from corebound.models.native_weights import NativeWeights

_RANK_COMMAND = (sys.executable, "-m", "corebound.engine.bench.load_times")

# Memory that a guest has freed its hypervisor may take back, two seconds later with Linux, and giving it again takes up
# to 15 times as long as clearing it. Both go on beside a load that comes meanwhile.
_READY, _READY_S = 1.25, 0.01
_MAX_TRIES_FOR_MEMORY = 8
_MAX_ROUNDS = 4  # for each that is asked for


@dataclass(frozen=True, kw_only=True)
class LoadJob:
    """What the ranks are to load, how often, and where rank 0 writes what it took."""

    model_dir: str
    dtype: str
    num_rounds: int
    cold: bool
    report_path: str


@dataclass(frozen=True, kw_only=True)
class LoadTimes:
    """Seconds of each round, of the slowest rank: `cat` of all weight files, and all weights in their place.

    Between the two, `memory_s` is how long it takes to get and give back fresh memory of as many bytes. `num_disturbed`
    rounds were done again and left out, because the machine was not the same before and after them; where all were,
    none is left out. Where files were dropped from the page cache, `dropped_shares` are the shares that were in memory
    all the same, None where the kernel does not tell.
    """

    num_bytes: int
    num_threads: int
    cat_s: list[float]
    memory_s: list[float]
    load_s: list[float]
    num_disturbed: int = 0
    dropped_shares: list[float | None] = field(default_factory=list)

    @property
    def dropped_share(self) -> float | None:
        """Return the largest of those shares; None where the kernel did not tell."""
        known = [share for share in self.dropped_shares if share is not None]
        return max(known) if known and len(known) == len(self.dropped_shares) else None

    @property
    def ratio(self) -> float:
        """Return the median over the rounds of loading over `cat`."""
        return median(load / cat for load, cat in zip(self.load_s, self.cat_s, strict=True))


def measure_load(model_dir: Path, dtype: str, num_ranks: int, num_rounds: int, *, cold: bool = False) -> LoadTimes:
    """Return how long `num_ranks` ranks of this machine take to load a model, and `cat` in turns with them.

    A first round, which may find files that are not in the page cache, is left out. With `cold` the files are dropped
    from the page cache before each `cat` and each load.

    Raises: LaunchError when a rank fails.
    """
    with tempfile.TemporaryDirectory(prefix="corebound-load-") as directory:
        report = Path(directory) / "report.json"
        job = LoadJob(model_dir=str(model_dir), dtype=dtype, num_rounds=num_rounds, cold=cold, report_path=str(report))
        spec = LaunchSpec(
            command=_RANK_COMMAND,
            num_accelerators=num_ranks,
            bind_cores_to_rank=None,
            rank0_stdin=json.dumps(asdict(job)).encode(),
        )
        if (code := launch(spec)) != 0:
            raise LaunchError(f"the ranks ended with exit code {code}", hint="the lines above say why")
        if not report.is_file():
            raise CoreboundError("the ranks ended without a report")
        return LoadTimes(**json.loads(report.read_text(encoding="utf-8")))


class FreshMemory:
    """Sees to it that memory for a load need not come from a hypervisor. `take_s` takes and gives back as much."""

    def __init__(self, take_s: Callable[[], float]) -> None:
        self._take_s = take_s
        self._least_s = math.inf

    def make_ready(self) -> float:
        """Take memory until that takes about the least time so far, and return how long it took at last."""
        for _ in range(_MAX_TRIES_FOR_MEMORY):
            taken_s, is_ready = self._take()
            if is_ready:
                break
        return taken_s

    def is_ready(self) -> bool:
        """Take memory once, and return whether that took about the least time so far."""
        return self._take()[1]

    def _take(self) -> tuple[float, bool]:
        taken_s = self._take_s()
        self._least_s = min(self._least_s, taken_s)
        return taken_s, taken_s <= _READY * self._least_s + _READY_S


@dataclass(frozen=True, kw_only=True)
class Round:
    """Seconds of one round, and whether the machine was the same before and after it."""

    cat_s: float
    memory_s: float
    load_s: float
    is_steady: bool


def steady_rounds(take: Callable[[], Round], num_rounds: int, max_rounds: int) -> tuple[list[Round], int]:
    """Take rounds until enough are steady, and return these and how many others there were; all where none is steady.

    `take` is called `max_rounds` times at most.
    """
    rounds: list[Round] = []
    while sum(one.is_steady for one in rounds) < num_rounds and len(rounds) < max_rounds:
        rounds.append(take())
    steady = [one for one in rounds if one.is_steady]
    return steady or rounds, len(rounds) - len(steady)


def main() -> int:
    """Measure, let rank 0 write the report, and return the exit code."""
    return run_rank(_measure)


def _measure(collectives: Collectives) -> None:
    # Here, because the process that starts the ranks needs no torch.
    import torch

    from corebound.models.loading import load_native_weights

    job = LoadJob(**collectives.broadcast_object(read_job() if collectives.rank == 0 else None))

    def load() -> NativeWeights:
        description = describe(job.model_dir, tokenizer=False)
        plan = shard_plan(description, collectives.size)
        return load_native_weights(description, plan, collectives.rank, scheme_to_apply(description, job.dtype))

    def drop() -> None:
        if job.cold and collectives.rank == 0:
            drop_from_page_cache(files)
            dropped_shares.append(cached_share(files))

    def take() -> Round:
        before_ns = distance_ns(cpus)
        drop()
        cat_s = _together(collectives, lambda: _cat(files) if collectives.rank == 0 else None)
        memory_s = fresh.make_ready()
        drop()
        load_s = _together(collectives, load)
        is_steady = fresh.is_ready() and are_alike(before_ns, distance_ns(cpus))
        # Every rank must come to the same end.
        is_steady = bool(collectives.broadcast_object(is_steady))
        return Round(cat_s=cat_s, memory_s=memory_s, load_s=load_s, is_steady=is_steady)

    files = describe(job.model_dir, tokenizer=False).checkpoint.files
    cpus = [core.cpus[0] for core in read_topology().physical_cores()] if collectives.rank == 0 else []
    num_bytes, num_threads = sum(files.values()), torch.get_num_threads()
    fresh = FreshMemory(lambda: _together(collectives, lambda: _touch(num_bytes // collectives.size)))
    dropped_shares: list[float | None] = []
    take()
    # The disk takes so long that nothing else matters.
    max_rounds = job.num_rounds if job.cold else _MAX_ROUNDS * job.num_rounds
    rounds, num_disturbed = steady_rounds(take, job.num_rounds, max_rounds)
    if collectives.rank == 0:
        times = LoadTimes(
            num_bytes=num_bytes,
            num_threads=num_threads,
            cat_s=[one.cat_s for one in rounds],
            memory_s=[one.memory_s for one in rounds],
            load_s=[one.load_s for one in rounds],
            num_disturbed=num_disturbed,
            dropped_shares=dropped_shares,
        )
        Path(job.report_path).write_text(json.dumps(asdict(times)), encoding="utf-8")


def _touch(num_bytes: int) -> None:
    """Get fresh memory and give it back: what a hypervisor must give first is not taken for the work of loading."""
    import torch

    from corebound.sharding.arena import allocate

    allocate({"all": (max(1, num_bytes),)}, torch.uint8)["all"].fill_(1)


def _together(collectives: Collectives, work: Callable[[], object]) -> float:
    """Return the seconds until every rank has done its work; what that made is given back afterwards."""
    collectives.barrier()
    started_s = time.perf_counter()
    made = work()
    elapsed_s = time.perf_counter() - started_s
    del made
    collectives.barrier()
    return max(float(collectives.broadcast_object(elapsed_s, root=rank)) for rank in range(collectives.size))


def _cat(files: Iterable[Path]) -> None:
    try:
        subprocess.run(["cat", "--", *map(str, files)], stdout=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HostError(f"cat of the weight files: {error}") from error


if __name__ == "__main__":
    leave(main())
