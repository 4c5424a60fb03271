"""The promised figures from the samples of rounds: pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from corebound.engine.bench.series import Sample
from corebound.engine.bench.targets.finding import ONE_CORE, Finding, Measured, NotMeasured, Sense, promise, ratios_of
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


def two_ranks(samples: Samples, shape: str, settings: Settings) -> list[Finding | NotMeasured]:
    """Return how long two ranks of a share of the cores take against one rank of all of them."""
    wanted = (
        ("ranks: decode", f"next token after {settings.short_prompt_tokens}", "step_ms"),
        ("ranks: short", f"first token of {settings.short_prompt_tokens}", "first_ms"),
        ("ranks: prompt", f"first token of {settings.prompt_tokens}", "first_ms"),
    )
    findings: list[Finding | NotMeasured] = []
    for case, name, figure in wanted:
        what = f"2 ranks over 1, {name}: {shape}, bfloat16"
        one, two = samples.find(ONE_RANK, case), samples.find(TWO_RANKS, case)
        if two:
            findings.append(_times("ranks", what, "at most", TWO_RANKS_BOUND, two, one, figure))
        else:
            promised = promise("at most", TWO_RANKS_BOUND)
            findings.append(NotMeasured(line="ranks", what=what, promised=promised, reason=ONE_CORE))
    return findings


def cached_two_ranks(samples: Samples, shape: str, alone: Who, pair: Who, note: str) -> list[Finding]:
    """Return how many times as fast two ranks on a core each are as one rank on one core."""
    one, two = samples.find(alone, "cached"), samples.find(pair, "cached")
    if not one or not two:
        return []
    what = f"1 core over 2 ranks, next token: {shape}, bfloat16"
    bound = CACHED_TWO_RANKS_BOUND
    return [_times("ranks", what, "at least", bound, one, two, note=note)]


def beams(samples: Samples, shape: str) -> list[Finding]:
    """Return what a step of beams takes against one of as many prompts."""
    batch, beam = samples.find(ONE_RANK, "beams: batch"), samples.find(ONE_RANK, "beams: beam")
    if not batch or not beam:
        return []
    what = f"beam {NUM_BEAMS} over batch {NUM_BEAMS}, next token: {shape}, bfloat16"
    return [_times("beams", what, "at most", BEAMS_BOUND, beam, batch)]


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
    line: str,
    what: str,
    sense: Sense,
    bound: float,
    mine: Sequence[Sample],
    theirs: Sequence[Sample],
    figure: str = "step_ms",
    note: str = "",
) -> Finding:
    """Return time over time, of the rounds in which the processors lay the same for both, where there are any."""
    rounds = list(zip(mine, theirs, strict=True))
    alike = [(one, other) for one, other in rounds if one.is_alike(other)]
    if not alike:
        moved = "in no round did the processors lay the same for both"
        note = f"{note}; {moved}" if note else moved
    values, others = ([_ms(sample, figure) for sample in each] for each in zip(*(alike or rounds), strict=True))
    return Finding(
        line=line,
        what=what,
        sense=sense,
        bound=bound,
        ratios=ratios_of(values, others),
        measured=Measured(name="time", unit="ms", rounds=values),
        limit=Measured(name="time of the other", unit="ms", rounds=others),
        note=note,
    )


def _ms(sample: Sample, figure: str) -> float:
    return sample.step_ms if figure == "step_ms" else sample.case.first_token_ms
