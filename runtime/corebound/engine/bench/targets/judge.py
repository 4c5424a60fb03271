"""The promised figures from the samples of rounds: pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from corebound.engine.bench.peers.adapters.protocol import CaseReport
from corebound.engine.bench.series import Sample
from corebound.engine.bench.targets.finding import ONE_CORE, Finding, Measured, NotMeasured, Sense, promise, ratios_of
from corebound.engine.bench.targets.pairs import Pair, rounds_that_count
from corebound.engine.bench.targets.planned import Who
from corebound.engine.bench.targets.samples import Samples, moved_note, steady
from corebound.engine.bench.targets.settings import BATCHES, NUM_BEAMS, Settings
from corebound.engine.bench.work import Work

DTYPES = ("bfloat16", "int8", "int4")
DECODE_BOUNDS = {"bfloat16": 0.90, "int8": 0.85, "int4": 0.75}
# Of the larger vocabulary only bfloat16 is promised.
BLOOM_DECODE_BOUNDS = {"bfloat16": 0.85}
PREFILL_BOUND = 0.93
TWO_RANKS_BOUND, CACHED_TWO_RANKS_BOUND = 1.05, 1.7
LONG_CONTEXT_BOUND = 0.85
BEAMS_BOUND = 1.15
MEMORY_BOUND = 1.10
BUSY_CORE_BOUND = 2.5
Figure = Literal["first", "next"]
ONE_RANK, TWO_RANKS = Who(dtype="bfloat16", num_ranks=1), Who(dtype="bfloat16", num_ranks=2)


def decode(samples: Samples, shape: str, work: Work, settings: Settings) -> list[Finding]:
    """Return the share of the read bandwidth that one rank's steps reach, for every dtype measured."""
    bounds = BLOOM_DECODE_BOUNDS if shape.startswith("bloom") else DECODE_BOUNDS
    findings = []
    for dtype in DTYPES:
        if found := steady(samples.find(Who(dtype=dtype, num_ranks=1), "decode")):
            context = settings.short_prompt_tokens + settings.new_tokens / 2
            what = f"{shape}, {dtype}, batch 1"
            findings.append(_read("decode", what, bounds.get(dtype), found, work, context))
    return findings


def long_context(samples: Samples, shape: str, work: Work, settings: Settings) -> list[Finding]:
    """Return the share of the read bandwidth after a long prompt, the cache counted."""
    found = steady(samples.find(ONE_RANK, "context"))
    if not found:
        return []
    what = f"{shape}, bfloat16, context {settings.context}"
    finding = _read("context", what, LONG_CONTEXT_BOUND, found, work, settings.context + settings.few_tokens)
    return [finding]


def _read(line: str, what: str, bound: float | None, found: Sequence[Sample], work: Work, context: float) -> Finding:
    reads = [_bytes_of(sample, work, context) / sample.step_ms / 1e6 for sample in found]
    ceilings = [sample.read_ceiling_gb_per_s for sample in found]
    return Finding(
        line=line,
        what=what,
        sense="at least",
        bound=bound,
        ratios=ratios_of(reads, ceilings),
        measured=Measured(name="weights and cache read", unit="GB/s", rounds=reads),
        limit=Measured(name="read bandwidth", unit="GB/s", rounds=ceilings),
        note=moved_note(found),
    )


def _bytes_of(sample: Sample, work: Work, context: float) -> int:
    assert sample.engine.weight_bytes_per_token is not None, "our ranks count them"
    return sample.engine.weight_bytes_per_token + work.cache_bytes(context, 1)


def prefill(samples: Samples, shape: str, work: Work, settings: Settings) -> list[Finding]:
    """Return the share of the bfloat16 GEMM peak that a prompt reaches, for every dtype measured."""
    findings = []
    for dtype in DTYPES:
        if found := steady(samples.find(Who(dtype=dtype, num_ranks=1), "prompt")):
            flop = work.prefill_flop(settings.prompt_tokens, 1)
            speeds = [flop / sample.case.first_token_ms / 1e6 for sample in found]
            peaks = [sample.gemm_ceiling_gflop_per_s for sample in found]
            findings.append(
                Finding(
                    line="prefill",
                    what=f"{shape}, {dtype}, prompt of {settings.prompt_tokens}",
                    sense="at least",
                    bound=PREFILL_BOUND,
                    ratios=ratios_of(speeds, peaks),
                    measured=Measured(name="first token", unit="GFLOP/s", rounds=speeds),
                    limit=Measured(name="bfloat16 GEMM peak", unit="GFLOP/s", rounds=peaks),
                    note=moved_note(found),
                )
            )
    return findings


def two_ranks(samples: Samples, shape: str, settings: Settings) -> list[Finding]:
    """Return how long two ranks of a share of the cores take against one rank of all of them."""
    return [
        finding
        for name, (what, figure) in _two_ranks(shape, settings).items()
        for finding in _paired("ranks", what, "at most", TWO_RANKS_BOUND, samples.of_pair.get(name, []), figure)
    ]


def without_two_ranks(shape: str, settings: Settings) -> list[NotMeasured]:
    """Return the rows that `two_ranks` would have on a machine of more than one core."""
    promised = promise("at most", TWO_RANKS_BOUND)
    return [
        NotMeasured(line="ranks", what=what, promised=promised, reason=ONE_CORE)
        for what, _ in _two_ranks(shape, settings).values()
    ]


def _two_ranks(shape: str, settings: Settings) -> dict[str, tuple[str, Figure]]:
    """Return the words and the figure of every pair by its name."""
    short, long = settings.short_prompt_tokens, settings.prompt_tokens
    figures: dict[str, tuple[str, Figure]] = {
        "ranks: decode": (f"next token after {short}", "next"),
        "ranks: short": (f"first token of {short}", "first"),
        "ranks: prompt": (f"first token of {long}", "first"),
    }
    return {name: (f"2 ranks over 1, {what}: {shape}, bfloat16", figure) for name, (what, figure) in figures.items()}


def cached_two_ranks(samples: Samples, shape: str, note: str) -> list[Finding]:
    """Return how many times as fast two ranks on a core each are as one rank on one core."""
    what = f"1 core over 2 ranks, next token: {shape}, bfloat16"
    return _paired("ranks", what, "at least", CACHED_TWO_RANKS_BOUND, samples.of_pair.get("cached", []), "next", note)


def beams(samples: Samples, shape: str) -> list[Finding]:
    """Return what a step of beams takes against one of as many prompts."""
    what = f"beam {NUM_BEAMS} over batch {NUM_BEAMS}, next token: {shape}, bfloat16"
    return _paired("beams", what, "at most", BEAMS_BOUND, samples.of_pair.get("beams", []), "next")


def batches(samples: Samples, shape: str) -> list[Finding]:
    """Return the tokens a second of every batch, as multiples of those of batch 1."""
    alone = samples.find(ONE_RANK, "batch 1")
    singles = [1e3 / sample.step_ms for sample in alone]
    findings = []
    for batch in BATCHES if alone else ():
        speeds = [1e3 * batch / sample.step_ms for sample in samples.find(ONE_RANK, f"batch {batch}")]
        findings.append(
            Finding(
                line="batches",
                what=f"batch {batch} over batch 1, tokens/s: {shape}, bfloat16",
                sense="at least",
                bound=None,
                ratios=ratios_of(speeds, singles),
                measured=Measured(name=f"batch {batch}", unit="tokens/s", rounds=speeds),
                limit=Measured(name="batch 1", unit="tokens/s", rounds=singles),
            )
        )
    return findings


def busy_core(samples: Samples, shape: str) -> list[Finding]:
    """Return how much longer a step takes while another process never rests on one of the cores."""
    free, taken = samples.find(ONE_RANK, "busy: free"), samples.find(ONE_RANK, "busy: taken")
    if not free or not taken:
        return []
    what = f"one core taken over free, next token: {shape}, bfloat16"
    return [_times("busy", what, "at most", BUSY_CORE_BOUND, taken, free)]


def memory(samples: Samples, shape: str, checkpoint_bytes: dict[str, int], cache_bytes: int) -> list[Finding]:
    """Return the resident size after a prompt against the bytes of the checkpoint and of the cache that it filled.

    Promised is what came with the model; the whole process is told beside it.
    """
    findings = []
    for dtype in DTYPES:
        turn = samples.first.get(Who(dtype=dtype, num_ranks=1))
        if turn is None:
            continue
        limit = checkpoint_bytes[dtype] + cache_bytes
        # The whole process counts Python and torch, which no checkpoint holds: it is told, and nothing is promised.
        parts: tuple[tuple[str, int, float | None], ...] = (
            (f"less Python and torch: {shape}, {dtype}", turn.resident_bytes - turn.before_load_bytes, MEMORY_BOUND),
            (f"whole process: {shape}, {dtype}", turn.resident_bytes, None),
        )
        for what, num_bytes, bound in parts:
            findings.append(
                Finding(
                    line="memory",
                    what=what,
                    sense="at most",
                    bound=bound,
                    ratios=[num_bytes / limit],
                    measured=Measured(name="resident", unit="MiB", rounds=[num_bytes / 2**20]),
                    limit=Measured(name="checkpoint and cache", unit="MiB", rounds=[limit / 2**20]),
                    note="each model is loaded once a run, and measured after its first prompt",
                )
            )
    return findings


def _times(
    line: str, what: str, sense: Sense, bound: float, mine: Sequence[Sample], theirs: Sequence[Sample]
) -> Finding:
    """Return step over step, of the rounds in which the processors lay the same for both, where there are any."""
    rounds = list(zip(mine, theirs, strict=True))
    alike = [(one, other) for one, other in rounds if one.is_alike(other)]
    values, others = ([sample.step_ms for sample in each] for each in zip(*(alike or rounds), strict=True))
    return Finding(
        line=line,
        what=what,
        sense=sense,
        bound=bound,
        ratios=ratios_of(values, others),
        measured=Measured(name="time", unit="ms", rounds=values),
        limit=Measured(name="time of the other", unit="ms", rounds=others),
        note="" if alike else "in no round did the processors lay the same for both",
    )


def _paired(
    line: str,
    what: str,
    sense: Sense,
    bound: float,
    rounds: Sequence[Sequence[Pair]],
    figure: Figure,
    note: str = "",
) -> list[Finding]:
    """Return one side over the other: a round is the median of its pairs, see `rounds_that_count`."""
    if not rounds:
        return []
    kept, said = rounds_that_count(rounds)
    ones, others = (
        [[_ms(getattr(pair, side), figure) for pair in pairs] for pairs in kept] for side in ("one", "other")
    )
    return [
        Finding(
            line=line,
            what=what,
            sense=sense,
            bound=bound,
            ratios=[statistics.median(ratios_of(*both)) for both in zip(ones, others, strict=True)],
            measured=Measured(name="time", unit="ms", rounds=[statistics.median(times) for times in ones]),
            limit=Measured(name="time of the other", unit="ms", rounds=[statistics.median(times) for times in others]),
            pairs_per_round=[len(pairs) for pairs in kept],
            note="; ".join(part for part in (note, said) if part),
        )
    ]


def _ms(report: CaseReport, figure: Figure) -> float:
    return statistics.median(report.step_ms) if figure == "next" else report.first_token_ms
