"""Dealing: contiguous, complete, as even as possible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.sharding.partition import balanced_grain, deal, deal_heads

totals, parts = st.integers(0, 5000), st.integers(1, 40)


@given(totals, parts, st.sampled_from([1, 2, 8, 64]), st.booleans())
def test_dealt_ranges_cover_everything_once_in_order(total: int, num_parts: int, grain: int, last: bool) -> None:
    ranges = deal(total, num_parts, grain=grain, surplus_last=last)
    assert len(ranges) == num_parts
    assert [item for part in ranges for item in part] == list(range(total))


@given(totals, parts, st.sampled_from([1, 2, 8, 64]), st.booleans())
def test_dealt_ranges_differ_by_at_most_one_grain_and_the_rest(
    total: int, num_parts: int, grain: int, last: bool
) -> None:
    sizes = [len(part) for part in deal(total, num_parts, grain=grain, surplus_last=last)]
    assert max(sizes) - min(sizes) <= max(grain, total % grain)


@given(st.integers(1, 5000), parts)
def test_nobody_is_left_empty_with_the_balanced_grain(total: int, num_parts: int) -> None:
    sizes = [len(part) for part in deal(total, num_parts, grain=balanced_grain(total, num_parts))]
    assert min(sizes) > 0 or total < num_parts


def test_six_heads_on_four_ranks_are_two_two_one_one() -> None:
    assert [len(part) for part in deal(6, 4)] == [2, 2, 1, 1]
    assert [len(part) for part in deal(6, 4, surplus_last=True)] == [1, 1, 2, 2]


def test_a_large_dimension_is_cut_at_multiples_of_64() -> None:
    assert balanced_grain(11008, 3) == 64
    assert [len(part) for part in deal(11008, 3, grain=64)] == [3712, 3648, 3648]


@st.composite
def heads_and_ranks(draw: st.DrawFn) -> tuple[int, int, int]:
    num_kv_heads = draw(st.integers(1, 16))
    num_heads = num_kv_heads * draw(st.integers(1, 12))
    return num_heads, num_kv_heads, draw(st.integers(1, num_heads))


@given(heads_and_ranks())
def test_query_heads_are_covered_once_and_each_rank_has_the_kv_heads_they_read(case: tuple[int, int, int]) -> None:
    num_heads, num_kv_heads, num_ranks = case
    shares = deal_heads(num_heads, num_kv_heads, num_ranks)
    assert [head for q, _ in shares for head in q] == list(range(num_heads))
    for q, kv in shares:
        assert len(q) > 0
        assert sorted({head * num_kv_heads // num_heads for head in q}) == list(kv)


@given(heads_and_ranks())
def test_kv_heads_are_held_once_where_there_are_enough(case: tuple[int, int, int]) -> None:
    num_heads, num_kv_heads, num_ranks = case
    held = [head for _, kv in deal_heads(num_heads, num_kv_heads, num_ranks) for head in kv]
    if num_ranks <= num_kv_heads:
        assert held == list(range(num_kv_heads))
    else:
        assert set(held) == set(range(num_kv_heads))


@given(heads_and_ranks())
def test_with_few_kv_heads_no_rank_has_more_query_heads_than_it_must(case: tuple[int, int, int]) -> None:
    num_heads, num_kv_heads, num_ranks = case
    if num_ranks > num_kv_heads:
        assert max(len(q) for q, _ in deal_heads(num_heads, num_kv_heads, num_ranks)) == -(-num_heads // num_ranks)


@pytest.mark.parametrize(
    ("num_kv_heads", "num_ranks", "query_sizes", "kv_sizes"),
    [
        (6, 4, [2, 2, 1, 1], [2, 2, 1, 1]),
        (3, 2, [4, 2], [2, 1]),
        (3, 4, [2, 2, 1, 1], [1, 1, 1, 1]),
        (2, 4, [2, 1, 2, 1], [1, 1, 1, 1]),  # even over all ranks would give rank 1 both kv heads
        (1, 4, [2, 2, 1, 1], [1, 1, 1, 1]),
    ],
)
def test_six_query_heads(num_kv_heads: int, num_ranks: int, query_sizes: list[int], kv_sizes: list[int]) -> None:
    shares = deal_heads(6, num_kv_heads, num_ranks)
    assert [len(q) for q, _ in shares] == query_sizes
    assert [len(kv) for _, kv in shares] == kv_sizes
