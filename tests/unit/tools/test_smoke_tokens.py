"""The comparison of tokens: what counts as the reference, and what a difference means."""

from __future__ import annotations

import json

import pytest

from smoke.node import Answer
from smoke.tokens import judge_tokens, reference, tokens_of


def answer(*tokens: int, exit_code: int = 0) -> Answer:
    """Returns what `corebound generate --json` prints."""
    return Answer(exit_code=exit_code, stdout=json.dumps({"outputs": [{"token_ids": tokens}]}), stderr="")


def test_tokens_count_only_from_a_run_that_ended_well() -> None:
    assert tokens_of(answer(1, 2)) == [1, 2]
    assert tokens_of(answer(1, 2, exit_code=6)) is None
    assert tokens_of(Answer(exit_code=0, stdout='{"outputs": []}', stderr="")) is None


def test_the_reference_is_what_most_nodes_say_and_of_equals_the_first() -> None:
    assert reference({"a": [1], "b": [2], "c": [2], "d": None}) == ("b", [2])
    assert reference({"a": [1], "b": [2]}) == ("a", [1])
    assert reference({"a": None}) is None


@pytest.mark.parametrize("strict", [True, False])
def test_equal_tokens_pass_and_others_fail_or_warn(strict: bool) -> None:
    assert judge_tokens("b", "same", [1, 2, 3], [1, 2, 3], strict=strict, answer=answer()).status == "pass"
    check = judge_tokens("b", "same", [1, 5, 6], [1, 2, 3], strict=strict, answer=answer())
    assert check.status == ("fail" if strict else "warn")
    assert check.detail.startswith("token 2 of 3 differs: expected 2 3, found 5 6")


@pytest.mark.parametrize("strict", [True, False])
def test_a_run_without_tokens_always_fails(strict: bool) -> None:
    broken = Answer(exit_code=6, stdout="", stderr="tensor x: damaged")
    check = judge_tokens("b", "same", None, [1], strict=strict, answer=broken)
    assert check.status == "fail" and "tensor x: damaged" in check.detail


def test_a_text_that_ends_early_is_a_difference() -> None:
    check = judge_tokens("b", "same", [1], [1, 2], strict=True, answer=answer())
    assert check.detail == "token 2 of 2 differs: expected 2, found the end"
