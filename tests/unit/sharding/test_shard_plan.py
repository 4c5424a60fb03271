"""The plan: every parameter covered once, kv heads mapped, impossible splits refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from corebound.errors import ShardingError
from corebound.sharding import Geometry, alibi_slopes, shard_plan
from corebound.sharding.axes import axis_ranges, axis_size
from corebound.sharding.families import TABLES
from corebound.sharding.plan import model_parameters
from corebound.sharding.table import Axis, Decision, Rule


def geometry(**changes: Any) -> Geometry:
    sizes: dict[str, Any] = {
        "name": "tiny",
        "family": "llama",
        "num_layers": 2,
        "hidden_size": 48,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 100,
        "vocab_size": 101,
        "features": frozenset({"untied_head", "attention_bias", "mlp_bias"}),
    }
    return Geometry(**sizes | changes)


@st.composite
def geometries(draw: st.DrawFn) -> tuple[Geometry, int]:
    family = draw(st.sampled_from(sorted(TABLES)))
    num_kv_heads = draw(st.integers(1, 6))
    num_heads = num_kv_heads * (1 if TABLES[family].qkv_layout == "per_head" else draw(st.integers(1, 4)))
    model = geometry(
        family=family,
        num_layers=1,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([2, 8])),
        intermediate_size=draw(st.integers(24, 300)),
        vocab_size=draw(st.integers(24, 400)),
        features=draw(st.frozensets(st.sampled_from(["untied_head", "attention_bias", "mlp_bias"]))),
    )
    return model, draw(st.integers(1, num_heads))


_WITH_KV_HEADS = {Axis.KV, Axis.QKV_STACKED, Axis.QKV_PER_GROUP}


@given(geometries())
def test_every_cut_parameter_is_covered_exactly_once(case: tuple[Geometry, int]) -> None:
    model, num_ranks = case
    plan = shard_plan(model, num_ranks)
    for parameter in plan.parameters:
        length = parameter.shape[parameter.rule.cut_dim]
        held = sorted(item for rank in range(num_ranks) for part in plan.ranges(parameter, rank) for item in part)
        if parameter.rule.decision is Decision.REPLICATE:
            assert held == sorted(list(range(length)) * num_ranks)
        elif _WITH_KV_HEADS & set(parameter.rule.axes) and num_ranks > model.num_kv_heads:
            assert sorted(set(held)) == list(range(length))
        else:
            assert held == list(range(length))


@given(geometries())
def test_each_local_query_head_reads_its_own_kv_head(case: tuple[Geometry, int]) -> None:
    model, num_ranks = case
    group = model.num_heads // model.num_kv_heads
    for share in shard_plan(model, num_ranks).shares:
        found = [share.kv_heads[local] for local in share.kv_head_map]
        assert found == [head // group for head in share.query_heads]
        if share.even_groups:
            size = len(share.query_heads) // len(share.kv_heads)
            assert list(share.kv_head_map) == [head // size for head in range(len(share.query_heads))]


def test_separate_projections_of_one_field_are_stacked() -> None:
    plan = shard_plan(geometry(), 4)
    shapes = [plan.field_shapes(rank)["layers.1.qkv_weight"] for rank in range(4)]
    assert shapes == [((q + 2) * 8, 48) for q in (2, 1, 2, 1)]
    assert [plan.field_shapes(rank)["layers.0.attention_out_weight"] for rank in range(4)] == [
        (48, q * 8) for q in (2, 1, 2, 1)
    ]


def test_the_number_of_weights_is_the_sum_of_the_shapes() -> None:
    model = geometry()
    whole = sum(math.prod(parameter.shape) for parameter in model_parameters(model))
    assert shard_plan(model, 1).num_elements(0) == whole
    assert sum(shard_plan(model, 2).num_elements(rank) for rank in range(2)) > whole


def test_fused_layouts_name_the_rows_of_a_share() -> None:
    share = shard_plan(geometry(), 2).shares[1]  # query heads 3 to 5, kv head 1, of width 8
    assert axis_ranges(Axis.QKV_STACKED, geometry(), share) == (range(24, 48), range(56, 64), range(72, 80))
    inner = share.intermediate
    expected = (inner, range(100 + inner.start, 100 + inner.stop))
    assert axis_ranges(Axis.GATE_UP_STACKED, geometry(), share) == expected
    rows = axis_ranges(Axis.QKV_PER_GROUP, geometry(), share)  # after kv head 0 with its 3 queries, 40 rows
    assert rows == (range(40, 64), range(64, 72), range(72, 80))
    grouped = geometry(num_heads=15, num_kv_heads=3)
    uneven = shard_plan(grouped, 4).shares[1]  # heads 4 to 7 of 5 to a kv head
    assert (uneven.query_heads, uneven.kv_heads) == (range(4, 8), range(2))
    queries, keys, values = ((32, 40), (56, 80)), ((40, 48), (96, 104)), ((48, 56), (104, 112))
    expected = tuple(range(*ends) for ends in (*queries, *keys, *values))
    assert axis_ranges(Axis.QKV_PER_GROUP, grouped, uneven) == expected
    bloom = geometry(family="bloom", num_kv_heads=6)
    assert axis_ranges(Axis.QKV_PER_HEAD, bloom, shard_plan(bloom, 2).shares[1]) == (range(72, 144),)
    assert axis_size(Axis.QKV_STACKED, geometry()) == 80


@pytest.mark.parametrize("num_ranks", [0, -1, 7, 100])
def test_more_ranks_than_heads_are_refused_with_the_counts_that_work(num_ranks: int) -> None:
    with pytest.raises(ShardingError) as caught:
        shard_plan(geometry(), num_ranks)
    assert caught.value.message == f"cannot split tiny over {num_ranks} ranks: num_attention_heads is 6"
    assert caught.value.hint == "use 1, 2, 3, 4, 5 or 6"
    assert caught.value.exit_code == 6


def test_the_hint_stays_short_for_many_heads() -> None:
    with pytest.raises(ShardingError) as caught:
        shard_plan(geometry(num_heads=64, num_kv_heads=8, vocab_size=400), 65)
    assert caught.value.hint == "use any number from 1 to 64"


def test_a_small_vocabulary_limits_the_ranks_too() -> None:
    with pytest.raises(ShardingError, match="vocab_size is 3"):
        shard_plan(geometry(vocab_size=3), 4)


def test_alibi_slopes_of_a_power_of_two_are_a_geometric_series() -> None:
    assert alibi_slopes(8) == tuple(2.0**-n for n in range(1, 9))


def test_alibi_slopes_of_other_numbers_take_every_second_of_the_next_series() -> None:
    assert alibi_slopes(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)


def test_a_rule_that_cuts_what_it_must_not_is_refused() -> None:
    with pytest.raises(AssertionError):
        Rule("w", "f", (Axis.HIDDEN, Axis.VOCAB), Decision.SPLIT_INPUTS)
    with pytest.raises(AssertionError):
        Rule("w", "f", (Axis.QUERY, Axis.HIDDEN), Decision.REPLICATE)


@given(
    num_heads=st.sampled_from((1, 4, 6, 8, 12, 32)),
    kv_group=st.sampled_from((1, 2, 4)),
    head_dim=st.sampled_from((16, 32, 64, 128)),
    num_grains=st.integers(1, 40),
    grain=st.sampled_from((32, 64, 128)),
    num_ranks=st.integers(1, 12),
)
def test_neighbouring_inputs_that_share_a_scale_stay_on_one_rank(
    num_heads: int, kv_group: int, head_dim: int, num_grains: int, grain: int, num_ranks: int
) -> None:
    assume(num_heads % kv_group == 0)
    model = geometry(
        num_heads=num_heads,
        num_kv_heads=num_heads // kv_group,
        head_dim=head_dim,
        intermediate_size=num_grains * grain,
        input_grain=grain,
    )
    try:
        plan = shard_plan(model, num_ranks)
    except ShardingError as error:
        usable = [int(word) for word in re.findall(r"\d+", str(error.hint))]
        assert num_ranks not in usable
        if "neighbouring inputs" in error.message:
            assert 1 in usable
            for count in usable:
                shard_plan(model, count)
        return
    if num_ranks == 1:
        return
    for share in plan.shares:
        for part in (share.intermediate, range(share.query_heads.start * head_dim, share.query_heads.stop * head_dim)):
            assert part
            assert part.start % grain == 0
            assert part.stop % grain == 0 or part.stop == num_heads * head_dim
