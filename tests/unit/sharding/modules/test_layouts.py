"""What the ranks take of a projection, put together again, is the projection."""

import pytest

from corebound.errors import ShardingError
from corebound.sharding.modules.deal import Heads, rank_deal
from corebound.sharding.modules.layouts import GATE_UP, LAYOUTS, STACKED_QKV, layout_ranges

EQUAL, GROUPED, ONE = Heads(6, 6, 8), Heads(6, 2, 8), Heads(6, 1, 8)


def _indexes(layout, heads, size, num_ranks):
    deals = [rank_deal(heads, rank, num_ranks) for rank in range(num_ranks)]
    return [[i for part in layout_ranges(layout, deal, size, "x") for i in part] for deal in deals]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize(
    ("layout", "heads", "size"),
    [
        ("even", EQUAL, 100),
        ("aligned", EQUAL, 100),
        ("heads", GROUPED, 48),
        ("head_index", GROUPED, 6),
        ("per_head", EQUAL, 144),
        ("codegen", Heads(8, 8, 8), 192),
        (STACKED_QKV, EQUAL, 144),
        (GATE_UP, EQUAL, 200),
    ],
)
def test_every_output_is_held_once(layout, heads, size, num_ranks):
    found = _indexes(layout, heads, size, num_ranks)
    assert sorted(index for rank in found for index in rank) == list(range(size))
    assert all(found)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize(
    ("layout", "heads", "size"),
    [
        ("kv_heads", GROUPED, 16),
        ("kv_head_index", GROUPED, 2),
        ("kv_groups", GROUPED, 80),
        (STACKED_QKV, GROUPED, 80),
        (STACKED_QKV, ONE, 64),
    ],
)
def test_every_output_is_held_where_kv_heads_are_copied(layout, heads, size, num_ranks):
    found = _indexes(layout, heads, size, num_ranks)
    assert {index for rank in found for index in rank} == set(range(size))


def test_per_head_outputs_keep_q_k_v_of_a_head_together():
    assert _indexes("per_head", Heads(2, 2, 2), 12, 2) == [list(range(6)), list(range(6, 12))]


def test_stacked_outputs_of_unequal_widths_are_cut_one_by_one():
    """phi3: the preset that assumed equal thirds was wrong for fewer kv heads."""
    assert _indexes(STACKED_QKV, Heads(4, 2, 1), 8, 2) == [[0, 1, 4, 6], [2, 3, 5, 7]]


def test_groups_keep_query_heads_with_their_key_and_value():
    assert _indexes("kv_groups", Heads(4, 2, 1), 8, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_with_fewer_kv_heads_than_ranks_each_rank_has_a_copy_of_the_key_and_value_that_it_reads():
    assert _indexes("kv_groups", Heads(4, 2, 1), 8, 4) == [[0, 2, 3], [1, 2, 3], [4, 6, 7], [5, 6, 7]]


def test_one_key_and_value_for_all_query_heads_is_on_every_rank():
    assert _indexes(STACKED_QKV, Heads(4, 1, 1), 6, 2) == [[0, 1, 4, 5], [2, 3, 4, 5]]


def test_blocks_of_codegen_are_spread_over_as_many_blocks_again():
    """Each rank's part is laid out as the whole is: four blocks of queries, values, keys."""
    first, second = _indexes("codegen", Heads(8, 8, 1), 24, 2)
    assert first == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert second == [index + 12 for index in first]


def test_kv_heads_are_repeated_where_groups_would_be_unequal():
    deal = rank_deal(Heads(10, 2, 8), 1, 3)
    assert list(deal.query_heads) == [4, 5, 6]
    assert deal.kv_heads == (0, 1, 1)


def test_each_kv_head_is_owned_by_one_rank():
    owned = [rank_deal(Heads(10, 2, 8), rank, 3).owned_kv_heads for rank in range(3)]
    assert sorted(head for heads in owned for head in heads) == [0, 1]


def test_more_ranks_than_heads_is_an_error_that_says_how_many_work():
    with pytest.raises(ShardingError, match="6 attention heads over 7 ranks") as raised:
        rank_deal(EQUAL, 0, 7)
    assert raised.value.hint == "use 1 to 6 ranks"


def test_more_ranks_than_words_is_an_error():
    with pytest.raises(ShardingError, match="3 words over 4 ranks"):
        rank_deal(EQUAL, 0, 4).vocab(3)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("even", "aligned")] + [STACKED_QKV])
def test_a_size_that_a_layout_cannot_have_is_an_error_that_names_the_layer(layout):
    with pytest.raises(ShardingError, match=r"h\.0\.qkv: a size of 7 does not fit layout"):
        layout_ranges(layout, rank_deal(GROUPED, 0, 2), 7, "h.0.qkv")


def test_experts_are_cut_at_multiples_of_eight():
    parts = [layout_ranges("aligned", rank_deal(EQUAL, rank, 3), 40, "experts") for rank in range(3)]
    assert [len(part[0]) for part in parts] == [8, 16, 16]


def test_experts_too_narrow_for_the_ranks_are_an_error_that_names_them():
    with pytest.raises(ShardingError, match=r"mlp\.experts: a dimension of 40 cannot be split over 6 ranks"):
        layout_ranges("aligned", rank_deal(EQUAL, 0, 6), 40, "mlp.experts")
