"""Times of a generation, from the times of its tokens."""

import pytest

from corebound.engine.metrics import summary
from corebound.engine.request import RequestOutput


def output(first_token_s, gaps):
    return RequestOutput(
        prompt="",
        text="",
        token_ids=(1,) * (1 + len(gaps)),
        num_prompt_tokens=1,
        finish_reason="length",
        first_token_s=first_token_s,
        token_gaps_s=tuple(gaps),
    )


def test_the_first_token_is_not_among_the_next_ones():
    result = summary([output(0.5, [0.01, 0.03, 0.02])], elapsed_s=0.56)
    assert result["first_token_ms"] == 500
    assert result["next_token_ms"] == pytest.approx(20)
    assert result["tokens_per_s"] == pytest.approx(4 / 0.56)


def test_tokens_of_all_prompts_count():
    assert summary([output(0.1, [0.1]), output(0.1, [0.1] * 3)], elapsed_s=2.0)["tokens_per_s"] == 3.0


def test_a_single_token_has_no_next():
    assert summary([output(0.1, [])], elapsed_s=0.1)["next_token_ms"] is None
