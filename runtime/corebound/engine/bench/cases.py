"""The prompts of a benchmark: the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence

from corebound.engine.bench.peers.adapters.protocol import BenchCase

# The first tokens of a vocabulary are often special.
_FIRST_TOKEN = 3


def make_cases(
    prompt_lengths: Sequence[int], batch_sizes: Sequence[int], num_new_tokens: int, vocab_size: int
) -> list[BenchCase]:
    """Return a case for each length and batch size. The prompts of a batch differ, so that none can be reused."""
    return [
        BenchCase(
            prompt_token_ids=[_prompt(length, row, vocab_size) for row in range(batch_size)],
            num_new_tokens=num_new_tokens,
        )
        for length in prompt_lengths
        for batch_size in batch_sizes
    ]


def _prompt(length: int, row: int, vocab_size: int) -> list[int]:
    return [_FIRST_TOKEN + (7 * position + 13 * row) % (vocab_size - _FIRST_TOKEN) for position in range(length)]
