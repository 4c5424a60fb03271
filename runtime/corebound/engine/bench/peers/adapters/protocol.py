"""What one measurement is asked to do and what it answers: JSON on standard input, JSON in a file.

It runs in environments without Corebound and uses the standard library only.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SETTLE_S = 0.3  # what engines leave spinning after a call has gone to sleep
_NUM_BLOCKS, _TRIPS_PER_BLOCK = 60, 200
_MAX_REPEATED_S = 30.0


@dataclass(frozen=True, kw_only=True)
class BenchCase:
    """Prompts that are continued together, each by `num_new_tokens`, whatever tokens come.

    `wanted_lines_ns` are the times that a cache line should take meanwhile, none where that is all the same.
    """

    prompt_token_ids: list[list[int]]
    num_new_tokens: int
    wanted_lines_ns: list[float] = field(default_factory=list)

    @property
    def num_prompt_tokens(self) -> int:
        """The length of each prompt."""
        return len(self.prompt_token_ids[0])

    @property
    def batch_size(self) -> int:
        """The number of prompts."""
        return len(self.prompt_token_ids)

    def for_warm_up(self) -> BenchCase:
        """Return a case of the same size with other prompts: an engine that keeps prefixes has none of these."""
        return dataclasses.replace(self, prompt_token_ids=[prompt[::-1] for prompt in self.prompt_token_ids])


@dataclass(frozen=True, kw_only=True)
class BenchJob:
    """Measure `cases` on one model, each after a warm-up of `num_warm_up_tokens`.

    `converted_dir` is where an engine keeps the model in its own format; with `action` "convert" it is only written.
    With `action` "all_reduce" sums of `message_bytes` are timed in place of cases.
    `num_threads`, of each of `num_ranks` processes, is left to the engine when it is None.
    `line_library` is Corebound's, which times a cache line between the two `line_cpus`; without it nothing is known of
    their places. Times that differ by `line_tolerance` at most are of the same places. Each case has `max_tries`.
    """

    model_dir: str
    dtype: str
    cases: list[BenchCase]
    num_warm_up_tokens: int
    report_path: str
    num_threads: int | None = None
    converted_dir: str | None = None
    action: str = "measure"
    num_ranks: int = 1
    message_bytes: list[int] = field(default_factory=list)
    line_library: str | None = None
    line_cpus: list[int] = field(default_factory=list)
    line_tolerance: float = 1.0
    max_tries: int = 1

    def to_bytes(self) -> bytes:
        """Return the job as standard input of the process that does it."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> BenchJob:
        """Return the job of parsed JSON."""
        return cls(**{**fields, "cases": [BenchCase(**case) for case in fields["cases"]]})


@dataclass(frozen=True, kw_only=True)
class CaseReport:
    """Times of one case, and the tokens of its first prompt.

    Units: `first_token_ms` runs from submission until every prompt has its first token; `step_ms` are the waits
    between later tokens while all prompts were being continued. `lines_ns` are how long a cache line took between two
    cores before the case and after it, empty where that was not asked.
    """

    first_token_ms: float
    step_ms: list[float]
    elapsed_s: float
    token_ids: list[int] = field(default_factory=list)
    lines_ns: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What one measurement found, a `CaseReport` for each case of the job.

    Units: `peak_rss_bytes` is the sum over processes; `num_threads` is per process. `weight_bytes_per_token` is what
    one step reads of the weights, None where the engine does not know.
    """

    num_threads: int
    peak_rss_bytes: int
    cases: list[CaseReport]
    weight_bytes_per_token: int | None = None
    cpus: list[int] | None = None
    version: str = ""

    def write(self, path: str) -> None:
        """Write the report where the job asked for it."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class SumReport:
    """Times of sums over two processes: for each size in bytes, the microseconds of every call on rank 0."""

    times_us: dict[str, list[float]]
    version: str

    def write(self, path: str) -> None:
        """Write the report where the job asked for it."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


def read_sums(path: Path) -> SumReport:
    """Return the report of sums that a measurement wrote."""
    return SumReport(**json.loads(path.read_text(encoding="utf-8")))


def read_job() -> BenchJob:
    """Return the job that came on standard input."""
    return BenchJob.from_json(json.load(sys.stdin))


def convert_or_measure(convert: Callable[[BenchJob, Path], object], measure: Callable[[BenchJob, Path], object]) -> int:
    """Do the job on standard input with an engine that keeps models in a form of its own; return the exit code."""
    job = read_job()
    (convert if job.action == "convert" else measure)(job, Path(job.converted_dir or ""))
    return 0


def read_report(path: Path) -> BenchReport:
    """Return the report that a measurement wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return BenchReport(**{**fields, "cases": [CaseReport(**case) for case in fields["cases"]]})


def case_report(token_times_s: Sequence[Sequence[float]], elapsed_s: float, token_ids: Sequence[int]) -> CaseReport:
    """Return the report of a case from when each prompt's tokens came, in seconds since submission."""
    started_s = max(times[0] for times in token_times_s)
    ended_s = min(times[-1] for times in token_times_s)
    latest = max(token_times_s, key=lambda times: times[0])
    window = [moment for moment in latest if started_s <= moment <= ended_s]
    return CaseReport(
        first_token_ms=1e3 * started_s,
        step_ms=[1e3 * (after - before) for before, after in itertools.pairwise(window)],
        elapsed_s=elapsed_s,
        token_ids=list(token_ids),
    )


def between_lines(job: BenchJob, case: BenchCase, measure: Callable[..., CaseReport], *args: Any) -> CaseReport:
    """Return what `measure` reports of a case, and how long a cache line took before and after, where that is asked.

    A hypervisor moves virtual processors every few seconds, which only this process can tell of its cases. Where that
    happened, or the processors lie other than the case wants, it is measured again while the job grants a try. Engines
    of several processes are not asked: theirs do not rest on their cores meanwhile.
    """
    if job.line_library is None or job.num_ranks > 1:
        return measure(*args)
    started_s = time.perf_counter()
    for _ in range(job.max_tries):
        before_ns = _line_ns(job.line_library, job.line_cpus)
        report = measure(*args)
        lines_ns = [before_ns, _line_ns(job.line_library, job.line_cpus)]
        lines = lines_ns + case.wanted_lines_ns
        if max(lines) <= job.line_tolerance * min(lines) or time.perf_counter() - started_s > _MAX_REPEATED_S:
            break
    return dataclasses.replace(report, lines_ns=lines_ns)


def _line_ns(library: str, cpus: Sequence[int]) -> float:
    time.sleep(_SETTLE_S)
    times = (ctypes.c_double * _NUM_BLOCKS)()
    error = ctypes.create_string_buffer(256)
    first, other = (ctypes.c_int32(cpu) for cpu in cpus)
    measure = ctypes.CDLL(library).corebound_bench_latency
    if measure(first, other, _NUM_BLOCKS, _TRIPS_PER_BLOCK, times, error, ctypes.c_size_t(len(error))) != 0:
        raise SystemExit(f"cache-line latency: {error.value.decode()}")
    return float(statistics.median(times))


class StepClock:
    """Collects when each step of a batch brought its tokens."""

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self.times_s: list[float] = []

    def tick(self) -> None:
        """Note that a step has ended."""
        self.times_s.append(time.perf_counter() - self._started_s)

    def report(self, token_ids: Sequence[int]) -> CaseReport:
        """Return the report of a case whose prompts all advanced together."""
        return case_report([self.times_s], time.perf_counter() - self._started_s, token_ids)


def peak_rss_bytes(pid: int | str = "self") -> int:
    """Return the most memory that a process has had resident."""
    found = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) << 10 if found else 0
