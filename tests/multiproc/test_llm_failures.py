"""An LLM on two ranks: mistakes and failures on one of them leave both in step, or end both."""

from __future__ import annotations

import time

import pytest

from multiproc import llm_tasks as tasks
from multiproc.rank_harness import start_ranks

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]

MISTAKES = [[[-1]], [[10**30]], [[1.5]], [["a"]], [5], None, "a\ud800", [[]], [[5], [10**6]], [b"x"], [None]]


@pytest.mark.parametrize("provider", ["auto", "gloo"])
def test_ranks_may_load_for_longer_than_the_time_limit_of_a_collective(provider: str) -> None:
    with start_ranks(2, COREBOUND_COMM=provider, COREBOUND_COMM_TIMEOUT_S="4") as job:
        assert job.run(tasks.make, slow_rank=1, loading_s=7.0, timeout_s=60) == [0, 1]
        first, second = job.run(tasks.generate, [[5, 6]])
        assert first == second


def test_mistakes_are_errors_on_both_ranks_and_the_next_call_works() -> None:
    with start_ranks(2) as job:
        job.run(tasks.make, timeout_s=60)
        expected = job.run(tasks.generate, [[5, 6]])
        first, second = job.run(tasks.catch_mistakes, MISTAKES, timeout_s=60)
        assert first == second
        assert len(first) == len(MISTAKES) + 1
        assert all(text.startswith("RequestError: ") for text in first[:-1]), first
        assert first[-1] == repr(expected[0])


def test_a_callback_that_fails_ends_the_call_on_both_ranks_and_no_later_one_starts() -> None:
    with start_ranks(2) as job:
        job.run(tasks.make, timeout_s=60)
        job.start(tasks.generate_with_a_callback_that_fails)
        first, second = job.finish(timeout_s=10)
        assert (first.error_type, first.error) == ("ValueError", "the reader went away")
        # An effect of rank 0's failure, so the launch waits for the cause before it blames anybody.
        assert (second.error_type, second.error) == ("CommError", "rank 0 failed: ValueError: the reader went away")
        job.start(tasks.generate, [[5, 6]])
        for outcome in job.finish(timeout_s=10):
            assert outcome.error == "generate() on an LLM whose last call failed"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("provider", "together"), [("auto", False), ("auto", True), ("gloo", False)])
def test_a_rank_that_fails_within_a_step_ends_the_call_of_the_other_at_once(
    provider: str, together: bool, rank: int
) -> None:
    with start_ranks(2, COREBOUND_COMM=provider) as job:
        job.run(tasks.make, timeout_s=60)
        start_s = time.monotonic()
        job.start(tasks.fail_within_a_step, rank, together)
        outcomes = job.finish(timeout_s=30)
        assert time.monotonic() - start_s < 10
        assert outcomes[rank].error_type == "MemoryError"
        assert outcomes[1 - rank].error_type == "PeerLostError", outcomes[1 - rank]
