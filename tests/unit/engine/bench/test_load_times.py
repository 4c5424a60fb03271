"""Which rounds of loading count: those before and after which the machine was the same."""

from __future__ import annotations

import pytest

from corebound.engine.bench.load_times import FreshMemory, LoadTimes, Round, steady_rounds


def fresh_memory(*seconds: float) -> FreshMemory:
    return FreshMemory(iter(seconds).__next__)


def rounds(*steady: bool) -> list[Round]:
    return [Round(cat_s=1.0, memory_s=1.0, load_s=float(at), is_steady=one) for at, one in enumerate(steady)]


def test_memory_is_taken_again_until_that_is_about_as_quick_as_ever() -> None:
    fresh = fresh_memory(0.15, 2.6, 1.1, 0.16, 0.15)
    assert fresh.make_ready() == 0.15
    assert fresh.make_ready() == 0.16
    assert fresh.make_ready() == 0.15


def test_memory_that_never_comes_quickly_ends_the_wait() -> None:
    fresh = fresh_memory(0.1, *[2.0] * 8, 0.1)
    fresh.make_ready()
    assert fresh.make_ready() == 2.0
    assert fresh.is_ready(), "the wait has taken memory more often than it should"


def test_the_first_try_knows_no_better() -> None:
    assert fresh_memory(3.0).make_ready() == 3.0


def test_memory_is_looked_at_once_after_a_load() -> None:
    fresh = fresh_memory(0.1, 0.14, 0.13)
    fresh.make_ready()
    assert [fresh.is_ready(), fresh.is_ready()] == [False, True]


def test_rounds_are_taken_until_enough_are_steady() -> None:
    taken = iter(rounds(True, False, False, True, True, True))
    kept, num_disturbed = steady_rounds(taken.__next__, 3, 12)
    assert ([one.load_s for one in kept], num_disturbed) == ([0.0, 3.0, 4.0], 2)


def test_rounds_end_when_few_are_steady_and_those_count() -> None:
    taken = iter(rounds(False, True, False, False, True))
    kept, num_disturbed = steady_rounds(taken.__next__, 3, 4)
    assert ([one.load_s for one in kept], num_disturbed) == ([1.0], 3)


def test_where_none_is_steady_all_count_and_that_is_told() -> None:
    kept, num_disturbed = steady_rounds(iter(rounds(False, False)).__next__, 1, 2)
    assert (len(kept), num_disturbed) == (2, 2)


def test_the_ratio_is_the_median_of_the_rounds_own() -> None:
    times = LoadTimes(num_bytes=1, num_threads=1, cat_s=[1.0, 2.0, 4.0], memory_s=[1.0] * 3, load_s=[1.0, 4.0, 6.0])
    assert times.ratio == pytest.approx(1.5)
