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
_ALIKE, _ALIKE_S = 1.25, 0.01
_MAX_TRIES_FOR_MEMORY = 8
_MAX_ROUNDS = 4  # for each that is asked for


@dataclass(frozen=True, kw_only=True)
class LoadJob:
    """What the ranks are to load, how often, and where rank 0 writes what it took.

    `cpus` tell by their first and last whether the machine's processors lie as before; a bound rank knows only its own.
    """

    model_dir: str
    cpus: list[int]
    dtype: str
    num_rounds: int
    cold: bool
    report_path: str


@dataclass(frozen=True, kw_only=True)
class Round:
    """Seconds of one round, of the slowest rank: `cat` of all weight files, and all weights in their place.

    Between the two, `memory_s` is how long it takes to get and give back fresh memory of as many bytes as the weights
    have. The round `is_steady` when that took about as long after the load, and the processors lay as before `cat`.
    """

    cat_s: float
    memory_s: float
    load_s: float
    is_steady: bool = True


@dataclass(frozen=True, kw_only=True)
class LoadTimes:
    """All rounds, and those that count.

    Where files were dropped from the page cache, `dropped_shares` are the shares that were in memory all the same, None
    where the kernel does not tell.
    """

    num_bytes: int
    num_threads: int
    rounds: list[Round]
    dropped_shares: list[float | None] = field(default_factory=list)

    @property
    def kept(self) -> list[Round]:
        """Return the steady rounds, or all where none is."""
        return [one for one in self.rounds if one.is_steady] or self.rounds

    @property
    def dropped_share(self) -> float | None:
        """Return the largest of those shares; None where the kernel did not tell."""
        known = [share for share in self.dropped_shares if share is not None]
        return max(known) if known and len(known) == len(self.dropped_shares) else None

    @property
    def ratio(self) -> float:
        """Return the median over the rounds that count of loading over `cat`."""
        return median(one.load_s / one.cat_s for one in self.kept)

    @property
    def ratio_of_all(self) -> float:
        """Return the same over all rounds."""
        return median(one.load_s / one.cat_s for one in self.rounds)


def measure_load(model_dir: Path, dtype: str, num_ranks: int, num_rounds: int, *, cold: bool = False) -> LoadTimes:
    """Return how long `num_ranks` ranks of this machine take to load a model, and `cat` in turns with them.

    A first round, which may find files that are not in the page cache, is left out. With `cold` the files are dropped
    from the page cache before each `cat` and each load, and every round counts, since the disk takes most of it;
    otherwise rounds are taken until so many are steady, four for each that is asked for at most.

    Raises: LaunchError when a rank fails.
    """
    with tempfile.TemporaryDirectory(prefix="corebound-load-") as directory:
        report = Path(directory) / "report.json"
        cores = [core.cpus[0] for core in read_topology().physical_cores()]
        job = LoadJob(
            model_dir=str(model_dir),
            # Where ranks share cores, they would only see each other.
            cpus=cores if num_ranks <= len(cores) else [],
            dtype=dtype,
            num_rounds=num_rounds,
            cold=cold,
            report_path=str(report),
        )
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
        facts = json.loads(report.read_text(encoding="utf-8"))
        return LoadTimes(**facts | {"rounds": [Round(**one) for one in facts["rounds"]]})


def take_alike(a_s: float, b_s: float) -> bool:
    """Return whether memory came about as quickly both times."""
    return max(a_s, b_s) <= _ALIKE * min(a_s, b_s) + _ALIKE_S


def ready_memory(take_s: Callable[[], float]) -> float:
    """Take memory until that takes about as long twice running, and return the seconds it took at last."""
    before_s, taken_s = math.inf, take_s()
    for _ in range(_MAX_TRIES_FOR_MEMORY - 1):
        before_s, taken_s = taken_s, take_s()
        if take_alike(before_s, taken_s):
            break
    return taken_s


def take_rounds(take: Callable[[], Round], num_rounds: int, max_rounds: int) -> list[Round]:
    """Return rounds until so many are steady, and all that were taken meanwhile; at most `max_rounds`."""
    rounds: list[Round] = []
    while sum(one.is_steady for one in rounds) < num_rounds and len(rounds) < max_rounds:
        rounds.append(take())
    return rounds


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

    def take_s() -> float:
        return _together(collectives, lambda: _touch(weight_bytes))

    def take() -> Round:
        before_ns = place_ns()
        drop()
        cat_s = _together(collectives, lambda: _cat(files) if collectives.rank == 0 else None)
        memory_s = ready_memory(take_s)
        drop()
        load_s = _together(collectives, load)
        is_steady = job.cold or (take_alike(memory_s, take_s()) and are_alike(before_ns, place_ns()))
        return Round(cat_s=cat_s, memory_s=memory_s, load_s=load_s, is_steady=is_steady)

    def place_ns() -> float:
        return float(collectives.broadcast_object(distance_ns(job.cpus) if collectives.rank == 0 else None))

    files = describe(job.model_dir, tokenizer=False).checkpoint.files
    weight_bytes = load().num_bytes
    dropped_shares: list[float | None] = []
    take()
    rounds = take_rounds(take, job.num_rounds, _MAX_ROUNDS * job.num_rounds)
    if collectives.rank == 0:
        times = LoadTimes(
            num_bytes=sum(files.values()),
            num_threads=torch.get_num_threads(),
            rounds=rounds,
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
