"""Which rounds of loading count: those before and after which the machine was the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from corebound.engine.bench.load_times import LoadTimes, Round, ready_memory, take_alike, take_rounds


def taking(*seconds: float) -> Callable[[], float]:
    return iter(seconds).__next__


def rounds(*steady: bool) -> list[Round]:
    return [Round(cat_s=1.0, memory_s=1.0, load_s=1.0 + at, is_steady=one) for at, one in enumerate(steady)]


def test_memory_is_taken_until_that_takes_as_long_twice_running() -> None:
    take_s = taking(2.6, 1.1, 0.16, 0.15, 7.0)
    assert ready_memory(take_s) == 0.15
    assert take_s() == 7.0


def test_memory_that_never_comes_alike_ends_the_wait_after_eight_tries() -> None:
    take_s = taking(*(2.0**at for at in range(8)), 7.0)
    assert ready_memory(take_s) == 128.0
    assert take_s() == 7.0


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [(0.15, 0.19, True), (0.15, 0.21, False), (0.001, 0.009, True), (2.0, 2.4, True), (0.1, 2.4, False)],
)
def test_a_machine_that_became_slower_is_as_bad_as_one_that_became_faster(
    one: float, other: float, alike: bool
) -> None:
    assert take_alike(one, other) is alike and take_alike(other, one) is alike


def test_rounds_are_taken_until_enough_are_steady_and_none_is_forgotten() -> None:
    taken = take_rounds(iter(rounds(True, False, False, True, True, True)).__next__, 3, 12)
    assert [one.is_steady for one in taken] == [True, False, False, True, True]


def test_rounds_end_when_few_are_steady() -> None:
    assert len(take_rounds(iter(rounds(False, True, False, False, True)).__next__, 3, 4)) == 4


def test_the_ratio_is_the_median_of_the_steady_rounds_own_and_that_of_all_is_told() -> None:
    times = LoadTimes(num_bytes=1, num_threads=1, rounds=rounds(True, False, True, False, False))
    assert [one.load_s for one in times.kept] == [1.0, 3.0]
    assert times.ratio == pytest.approx(2.0) and times.ratio_of_all == pytest.approx(3.0)


def test_where_none_is_steady_all_count() -> None:
    times = LoadTimes(num_bytes=1, num_threads=1, rounds=rounds(False, False))
    assert len(times.kept) == 2 and times.ratio == times.ratio_of_all == pytest.approx(1.5)
