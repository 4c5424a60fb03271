"""What a generation took, from its outputs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from corebound.engine.request import RequestOutput


def summary(outputs: Sequence[RequestOutput], elapsed_s: float) -> dict[str, Any]:
    """Return first_token_ms, next_token_ms and tokens_per_s of a generation that took `elapsed_s` from submission.

    Units: first_token_ms is the median over prompts, from submission; next_token_ms the median wait between later
    tokens, which those that came together share alike, None without any; tokens_per_s counts new tokens of all prompts
    over the whole time, prefill included.
    """
    gaps = [gap for output in outputs for gap in output.token_gaps_s]
    num_tokens = sum(len(output.token_ids) for output in outputs)
    return {
        "first_token_ms": 1e3 * statistics.median(output.first_token_s for output in outputs),
        "next_token_ms": 1e3 * statistics.median(gaps) if gaps else None,
        "tokens_per_s": num_tokens / elapsed_s,
    }
