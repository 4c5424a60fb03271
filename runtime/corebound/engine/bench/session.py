"""Rounds in which engines take turns on the same cases, with a reading of the machine between every two of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from corebound.engine.bench.peers import process
from corebound.engine.bench.peers.adapters.protocol import BenchCase, BenchJob, BenchReport, CaseReport, read_report
from corebound.engine.bench.peers.catalog import Peer
from corebound.engine.bench.ruler import Reading, Ruler
from corebound.engine.bench.series import Sample, Series
from corebound.engine.bench.work import Work
from corebound.errors import CoreboundError, LaunchError
from corebound.kernels.latency_probe import LINES_ALIKE, are_alike
from corebound.launcher import LaunchSpec, launch
from corebound.native import core_library_path

OURS = "corebound"
_MAX_TRIES = 8  # of a case, until the processors lie still and as they should
_RANK_COMMAND = (sys.executable, "-m", "corebound.engine.bench.rank_main")
# What a step reads of a weight: int4 has a 16-bit scale for every 128.
BITS_PER_WEIGHT = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "int8": 8.0, "int4": 4.125}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One engine with one dtype and number of ranks; `run` measures all cases of a job."""

    engine: str
    dtype: str
    num_ranks: int
    run: Callable[[BenchJob], BenchReport]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An engine that is not there or did not finish, and why."""

    engine: str
    dtype: str
    reason: str


@dataclass(kw_only=True)
class Outcome:
    """What the rounds came to."""

    series: list[Series] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)


def our_ranks(dtype: str, num_ranks: int) -> Contender:
    """Return our engine on so many ranks of this machine."""

    def run(job: BenchJob) -> BenchReport:
        path = Path(job.report_path)
        path.unlink(missing_ok=True)
        # None binds where every rank can have a core of its own.
        spec = LaunchSpec(
            command=_RANK_COMMAND, num_accelerators=num_ranks, bind_cores_to_rank=None, rank0_stdin=job.to_bytes()
        )
        if (code := launch(spec)) != 0:
            raise LaunchError(f"the ranks of a round ended with exit code {code}", hint="the lines above say why")
        if not path.is_file():
            raise CoreboundError("a round ended without a report")
        return read_report(path)

    return Contender(engine=OURS, dtype=dtype, num_ranks=num_ranks, run=run)


def peer_engine(name: str, peer: Peer, dtype: str, folder: Path) -> Contender:
    """Return another engine; its `run` raises PeerError."""

    def run(job: BenchJob) -> BenchReport:
        threads = max(1, (job.num_threads or 1) // peer.num_ranks)
        job = dataclasses.replace(job, num_threads=threads, num_ranks=peer.num_ranks)
        return process.measure(peer, folder, process.convert(peer, folder, job))

    return Contender(engine=name, dtype=dtype, num_ranks=peer.num_ranks, run=run)


def take_turns(
    contenders: Sequence[Contender],
    job: BenchJob,
    *,
    model: str,
    work: Work,
    ruler: Ruler,
    num_rounds: int,
    announce: Callable[[str], None],
    on_round: Callable[[Outcome], object] | None = None,
) -> Outcome:
    """Return the series of all contenders after `num_rounds` rounds, each in the same order.

    Another engine that fails is left out of later rounds; a failure of ours ends the run. Whoever comes after ours in a
    round measures a case again, for some tries, when the processors lie other than for ours. `on_round` gets what there
    is after each round.
    """
    outcome = Outcome(readings=[ruler.read()])
    if len(ruler.cpus) > 1:
        job = dataclasses.replace(
            job,
            line_library=str(core_library_path()),
            line_cpus=[ruler.cpus[0], ruler.cpus[-1]],
            line_tolerance=LINES_ALIKE,
            max_tries=_MAX_TRIES,
        )
    series = {id(one): [_series(one, model, work, case) for case in job.cases] for one in contenders}
    running = list(contenders)
    for number in range(num_rounds):
        wanted: dict[str, list[BenchCase]] = {}
        for one in list(running):
            cases = wanted.get(one.dtype, job.cases)
            try:
                report = one.run(dataclasses.replace(job, dtype=one.dtype, cases=cases))
            except process.PeerError as error:
                outcome.failures.append(Failure(engine=one.engine, dtype=one.dtype, reason=str(error)))
                running.remove(one)
                announce(f"round {number + 1} of {num_rounds}: {one.engine} {one.dtype}: {error}")
                continue
            outcome.readings.append(ruler.read())
            before, after = outcome.readings[-2:]
            for item, case in zip(series[id(one)], report.cases, strict=True):
                item.samples.append(Sample(engine=report, case=case, before=before, after=after))
            if one.engine == OURS:
                wanted[one.dtype] = [_like(*pair) for pair in zip(cases, report.cases, strict=True)]
            announce(f"round {number + 1} of {num_rounds}: {_line(series[id(one)][0], after)}")
        outcome.series = [item for one in contenders for item in series[id(one)] if item.samples]
        if on_round is not None:
            on_round(outcome)
    return outcome


def _like(case: BenchCase, found: CaseReport) -> BenchCase:
    """Return a case that wants the processors as they lay for a report, if they lay still and it wants nothing yet."""
    if case.wanted_lines_ns or not found.lines_ns or not are_alike(*found.lines_ns):
        return case
    return dataclasses.replace(case, wanted_lines_ns=found.lines_ns)


def _series(one: Contender, model: str, work: Work, case: BenchCase) -> Series:
    return Series(
        engine=one.engine,
        model=model,
        dtype=one.dtype,
        num_ranks=one.num_ranks,
        case=case,
        work=work,
        default_weight_bytes=work.weight_bytes(BITS_PER_WEIGHT[one.dtype]),
    )


def _line(series: Series, after: Reading) -> str:
    sample = series.samples[-1]
    return (
        f"{series.engine} {series.dtype}: first token {sample.case.first_token_ms:.0f} ms, "
        f"next {sample.step_ms:.2f} ms; memory {after.read_gb_per_s:.1f} GB/s, "
        f"products {after.gemm_gflop_per_s:.0f} GFLOP/s"
    )
