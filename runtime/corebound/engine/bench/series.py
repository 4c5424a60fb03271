"""The rounds of one engine on one case, and the row that they become."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from corebound.engine.bench.peers.adapters.protocol import BenchCase, BenchReport, CaseReport
from corebound.engine.bench.ruler import Reading
from corebound.engine.bench.work import Work
from corebound.kernels.latency_probe import are_alike

PERCENTILES = (10, 90, 99)
_MIN_ALIKE = 3


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One round of one case: what the engine reported, the readings before and after it, the number of the round."""

    engine: BenchReport
    case: CaseReport
    before: Reading
    after: Reading
    number: int = 0

    @property
    def is_steady(self) -> bool:
        """Whether the processors lay the same before and after the round."""
        return self.before.is_alike(self.after)

    def is_alike(self, other: Sample) -> bool:
        """Return whether both were taken while the processors lay the same: around each case, where that is known."""
        if self.case.lines_ns and other.case.lines_ns:
            found = self.case.lines_ns + other.case.lines_ns
            return are_alike(min(found), max(found))
        return self.is_steady and other.is_steady and self.after.is_alike(other.after)

    @property
    def has_its_ceilings(self) -> bool:
        """Whether the processors lay the same in the readings as around the case, where that is known."""
        found = [self.before.line_ns, *self.case.lines_ns, self.after.line_ns]
        return not self.case.lines_ns or are_alike(min(found), max(found))

    @property
    def read_ceiling_gb_per_s(self) -> float:
        """The bandwidth around the round."""
        return (self.before.read_gb_per_s + self.after.read_gb_per_s) / 2

    @property
    def gemm_ceiling_gflop_per_s(self) -> float:
        """The speed of products around the round."""
        return (self.before.gemm_gflop_per_s + self.after.gemm_gflop_per_s) / 2

    @property
    def step_ms(self) -> float:
        """The median step of the round."""
        return statistics.median(self.case.step_ms)


@dataclass(kw_only=True)
class Series:
    """The rounds of one engine on one case; figures of its row are medians over them.

    `default_weight_bytes` stands in for an engine that does not know what it reads.
    """

    engine: str
    model: str
    dtype: str
    num_ranks: int
    case: BenchCase
    work: Work
    default_weight_bytes: int
    samples: list[Sample] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return the figures of all rounds.

        Units: `read_gb_per_s` counts the weights and the cache that one step reads; fractions are medians of each
        round's own, over the rounds that have their ceilings, see `rounds_that_count`; percentiles are those of the
        steps of all rounds together.
        """
        counts = rounds_that_count([sample.has_its_ceilings for sample in self.samples])
        steps = [step for sample in self.samples for step in sample.case.step_ms]
        reads = [self._bytes_per_step(sample) / sample.step_ms / 1e6 for sample in self.samples]
        flop = self.work.prefill_flop(self.case.num_prompt_tokens, self.case.batch_size)
        prefills = [flop / sample.case.first_token_ms / 1e6 for sample in self.samples]
        num_tokens = self.case.batch_size * self.case.num_new_tokens
        row: dict[str, Any] = {
            "engine": self.engine,
            "version": self.samples[0].engine.version,
            "model": self.model,
            "dtype": self.dtype,
            "num_ranks": self.num_ranks,
            "num_threads": self.samples[0].engine.num_threads,
            "num_prompt_tokens": self.case.num_prompt_tokens,
            "batch_size": self.case.batch_size,
            "num_rounds": len(self.samples),
            "first_token_ms": _median((s.case.first_token_ms for s in self.samples), 3),
            "next_token_ms": _median((s.step_ms for s in self.samples), 3),
            **{f"next_token_p{p}_ms": round(percentile(steps, p), 3) for p in PERCENTILES},
            "tokens_per_s": _median((num_tokens / s.case.elapsed_s for s in self.samples), 3),
            "decode_tokens_per_s": _median((1e3 * self.case.batch_size / s.step_ms for s in self.samples), 3),
            "weight_bytes_per_token": self._weight_bytes(self.samples[0]),
            "cache_bytes_per_step": self._bytes_per_step(self.samples[0]) - self._weight_bytes(self.samples[0]),
            "read_gb_per_s": _median(reads, 3),
            "ceiling_gb_per_s": _median((s.read_ceiling_gb_per_s for s in self.samples), 3),
            "fraction_of_ceiling": _median(
                itertools.compress(_fractions(reads, [s.read_ceiling_gb_per_s for s in self.samples]), counts), 4
            ),
            "prefill_gflop_per_s": _median(prefills, 1),
            "gemm_ceiling_gflop_per_s": _median((s.gemm_ceiling_gflop_per_s for s in self.samples), 1),
            "prefill_fraction_of_gemm": _median(
                itertools.compress(_fractions(prefills, [s.gemm_ceiling_gflop_per_s for s in self.samples]), counts), 4
            ),
            "peak_rss_bytes": int(statistics.median(s.engine.peak_rss_bytes for s in self.samples)),
        }
        return row

    def _weight_bytes(self, sample: Sample) -> int:
        found = sample.engine.weight_bytes_per_token
        return self.default_weight_bytes if found is None else found

    def _bytes_per_step(self, sample: Sample) -> int:
        context = self.case.num_prompt_tokens + self.case.num_new_tokens / 2
        return self._weight_bytes(sample) + self.work.cache_bytes(context, self.case.batch_size)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile of some values; of a single one, itself."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _median(values: Iterable[float], digits: int) -> float:
    return round(statistics.median(values), digits)


def _fractions(values: Sequence[float], ceilings: Sequence[float]) -> list[float]:
    return [value / ceiling for value, ceiling in zip(values, ceilings, strict=True)]


def compare(ours: Series, theirs: Series) -> dict[str, Any]:
    """Return how much faster we are than another engine, round by round, and how far the tokens agree.

    Medians are over the rounds in which the processors lay the same for both, see `rounds_that_count`. Of each round
    `lines_ns_per_round` has how long a cache line took: before and after our case, before and after theirs.
    """
    pairs = list(zip(ours.samples, theirs.samples, strict=True))
    counts = rounds_that_count([a.is_alike(b) for a, b in pairs])
    ratios = [b.step_ms / a.step_ms for a, b in pairs]
    firsts = [b.case.first_token_ms / a.case.first_token_ms for a, b in pairs]
    return {
        "with": theirs.engine,
        "dtype": ours.dtype,
        "num_ranks": ours.num_ranks,
        "num_prompt_tokens": ours.case.num_prompt_tokens,
        "batch_size": ours.case.batch_size,
        "decode_speed_ratio": _median(itertools.compress(ratios, counts), 3),
        "ratio_per_round": [round(ratio, 3) for ratio in ratios],
        "first_token_ratio": _median(itertools.compress(firsts, counts), 3),
        "first_token_ratio_per_round": [round(ratio, 3) for ratio in firsts],
        "round_counts": counts,
        "lines_ns_per_round": [[round(line, 1) for line in a.case.lines_ns + b.case.lines_ns] for a, b in pairs],
        "num_equal_tokens": num_equal(ours.samples[0].case.token_ids, theirs.samples[0].case.token_ids),
        "num_new_tokens": ours.case.num_new_tokens,
    }


def rounds_that_count(are_alike: Sequence[bool]) -> list[bool]:
    """Return which rounds count: those that are alike if they are three at least, else all, as two are chance."""
    return list(are_alike) if sum(are_alike) >= min(_MIN_ALIKE, len(are_alike)) else [True] * len(are_alike)


def num_equal(tokens: Sequence[int], others: Sequence[int]) -> int:
    """Return how many tokens agree before the first that does not."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(tokens, others, strict=False))
    return sum(1 for _ in pairs)
