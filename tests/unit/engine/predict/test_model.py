from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from corebound.engine.bench.shapes import SHAPES
from corebound.engine.predict.ceilings import AttentionRate, Ceilings, InputTime, SumTime
from corebound.engine.predict.model import (
    PROCESS_BYTES,
    Prediction,
    Workload,
    _buffer_bytes,
    predict,
)
from corebound.engine.predict.splits import best, compare, rank_counts
from corebound.engine.predict.times import PYTHON_STEP_S, StepTimes, attention_flop
from corebound.errors import ShardingError
from corebound.kernels.panel_format import KINDS
from corebound.kernels.panel_probe import ProductRate
from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families import ARCHITECTURES
from corebound.models.storage import rank_storage
from corebound.sharding import shard_plan

GIB = 1 << 30
# 10 GB/s of bfloat16 weights with one row, and with 512 rows a hundredth of that: 512 GFLOP/s.
RATES = {"bfloat16": 5e9, "int8": 10e9, "int4": 18e9}
INPUT_NS = {"bfloat16": 7.0, "int8": 5.0, "int4": 3.0}


def ceilings(**changes: object) -> Ceilings:
    products = tuple(
        ProductRate(kind=kind, num_rows=rows, matrix_bytes=1 << 24, weights_per_s=RATES[kind] / slower)
        for kind in KINDS
        for rows, slower in ((1, 1), (512, 10))
    )
    made = Ceilings(
        host="golden",
        isa="amx",
        num_cores=2,
        num_numa_nodes=1,
        memory_bytes=16 * GIB,
        read_gb_per_s=10.0,
        products=products,
        inputs=tuple(InputTime(kind=kind, time_ns=time_ns) for kind, time_ns in INPUT_NS.items()),
        attention=(
            AttentionRate(group_heads=8, cache_gb_per_s=4.0, prompt_gflop_per_s=100.0),
            AttentionRate(group_heads=1, cache_gb_per_s=8.0, prompt_gflop_per_s=50.0),
        ),
        sums=(
            SumTime(num_ranks=2, num_bytes=4096, time_us=1.0),
            SumTime(num_ranks=2, num_bytes=2 << 20, time_us=200.0),
        ),
        layer_us=10.0,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # fields of several types by name


def shape(name: str) -> Architecture:
    config = SHAPES[name]
    return ARCHITECTURES[config["architectures"][0]](ConfigReader(Path(name), dict(config)), name)


LLAMA = shape("llama-1.1b")
# Of a layer 2560 x 2048, 2048 x 2048, 11264 x 2048 and 2048 x 5632; the head is 32000 x 2048.
LAYER = (2560 + 2048 + 11264 + 5632) * 2048
MATRICES = 22 * LAYER + 32000 * 2048
SMALL = 2 * (2 * 22 + 1) * 2048
CACHED = 22 * 2 * 4 * 64 * 2  # bytes of a token
# Of a layer's four products, and the head's.
LAYER_INPUTS, HEAD_INPUTS = 3 * 2048 + 5632, 2048


def one(
    dtype: str = "bfloat16", ranks: int = 1, hosts: int = 1, work: Workload | None = None, **changes: object
) -> Prediction:
    return predict(LLAMA, dtype, ranks, hosts, ceilings(**changes), work or Workload())


@pytest.mark.parametrize(("hosts", "divisor", "num_together"), [(1, 1.0, 3), (2, 1.0, 1), (1, 7.0, 1)])
def test_short_steps_share_the_time_of_python_where_they_are_done_together(
    hosts: int, divisor: float, num_together: int
) -> None:
    small = dataclasses.replace(shape("llama-tiny"), logits_divisor=divisor)
    found = predict(small, "bfloat16", 1, hosts, ceilings(), Workload(context=1)).next_token
    plan = shard_plan(small, hosts)
    stored = tuple(rank_storage(small, plan, rank, None) for rank in range(hosts))
    alone = StepTimes(small, plan, stored, ceilings(), 1, hosts).step([0], 1, 1)
    assert hosts == 2 or 0.01 / 4 < alone.total_s <= 0.01 / 3
    assert alone.overhead_s - found.overhead_s == pytest.approx(PYTHON_STEP_S * (1 - 1 / num_together))
    assert found.memory_s == alone.memory_s


def test_a_next_token_takes_the_weights_and_the_cache_once_and_what_layers_cost_beside_them() -> None:
    found = one().next_token
    assert found.memory_s == pytest.approx(MATRICES / 5e9 + CACHED * 512 / 10e9)
    # Eight queries read the same keys: at 4 GB/s.
    assert found.memory_s + found.arithmetic_s == pytest.approx(MATRICES / 5e9 + CACHED * 512 / 4e9)
    inputs_s = (22 * LAYER_INPUTS + HEAD_INPUTS) * 7e-9
    assert found.overhead_s == pytest.approx(22 * 10e-6 + inputs_s + PYTHON_STEP_S)
    assert found.all_reduce_s == 0
    assert found.bound_by == "memory bandwidth"


def test_inputs_cost_what_the_kind_of_their_matrix_costs() -> None:
    alone = one("int4").next_token.overhead_s
    free = one("int4", inputs=tuple(InputTime(kind=kind, time_ns=1e-6) for kind in KINDS)).next_token.overhead_s
    # The head has eight bits.
    assert alone - free == pytest.approx(22 * LAYER_INPUTS * 3e-9 + HEAD_INPUTS * 5e-9, rel=1e-4)


def test_a_cache_is_read_no_faster_than_memory_and_of_a_prompt_at_its_rate() -> None:
    fast = (AttentionRate(group_heads=1, cache_gb_per_s=1000.0, prompt_gflop_per_s=100.0),)
    assert one(attention=fast).next_token.arithmetic_s == pytest.approx(0)
    assert one(attention=fast).first_token == one().first_token


def test_attention_of_a_prompt_takes_longer_where_fewer_queries_read_the_same_keys() -> None:
    same = (AttentionRate(group_heads=1, cache_gb_per_s=8.0, prompt_gflop_per_s=100.0),)
    bloom = shape("bloom-560m")
    slow, fast = (predict(bloom, "int8", 1, 1, made, Workload()) for made in (ceilings(), ceilings(attention=same)))
    attention_s = 24 * 4 * 1024 * (512 * 513 // 2) / 100e9
    assert slow.first_token.total_s - fast.first_token.total_s == pytest.approx(attention_s)
    assert slow.next_token == fast.next_token


def test_a_first_token_is_bound_by_arithmetic_and_its_last_layer_ends_with_one_row() -> None:
    found = one().first_token
    rows_512 = 21 * LAYER + 2560 * 2048
    products_s = rows_512 / 5e8 + (MATRICES - rows_512) / 5e9
    attention_s = 22 * 4 * 2048 * (512 * 513 // 2) / 100e9
    assert found.memory_s + found.arithmetic_s == pytest.approx(products_s + attention_s + CACHED * 512 / 10e9)
    assert found.bound_by == "arithmetic"


def test_a_prompt_longer_than_a_step_has_logits_in_its_last_step_only() -> None:
    short, long = one().first_token, one(work=Workload(prompt_tokens=1024, context=1024)).first_token
    assert long.total_s > 2 * (short.total_s - 32000 * 2048 / 5e9)
    last_s = short.total_s - PYTHON_STEP_S
    assert long.total_s < 2.2 * last_s + 22 * 4 * 2048 * 512 * 512 / 100e9


def test_memory_is_panels_embedding_small_tensors_cache_buffers_and_the_process() -> None:
    found = one(work=Workload(prompt_tokens=512, context=600))
    assert found.weight_bytes == 2 * MATRICES + SMALL + 2 * 32000 * 2048
    assert found.cache_bytes == CACHED * 608  # whole blocks of 32
    buffers = 512 * 2 * (3 * 2048 + 2560 + 2 * 2048 + 5632 + 5632)
    assert found.rank_bytes == found.weight_bytes + found.cache_bytes + buffers + PROCESS_BYTES
    assert found.host_bytes == found.rank_bytes


def test_a_quantized_head_has_eight_bits_and_a_tied_one_all() -> None:
    layers = 22 * sum(
        -(-outputs // 64) * (inputs * 32 + inputs // 128 * 64 * 3)
        for outputs, inputs in ((2560, 2048), (2048, 2048), (11264, 2048), (2048, 5632))
    )
    head = 32000 // 64 * (64 * 2048 + 128)
    assert one("int4").weight_bytes == layers + head + SMALL + 2 * 32000 * 2048
    bloom = predict(shape("bloom-560m"), "int8", 1, 1, ceilings(), Workload())
    assert 250880 * 1024 * 2 < bloom.weight_bytes < 250880 * 1024 * 2 + 1.03 * 24 * 12 * 1024**2


def test_two_ranks_share_the_cores_and_pay_for_their_sums() -> None:
    alone, two = one().next_token, one(ranks=2).next_token
    assert two.memory_s == pytest.approx(alone.memory_s, rel=0.01)
    # 45 sums of one row of 4096 bytes and two small messages, each 1.5 times the floor.
    assert two.all_reduce_s == pytest.approx(47 * 1.5e-6)
    # What shorter inputs save is waited for.
    assert two.overhead_s == pytest.approx(alone.overhead_s)


def test_two_hosts_halve_the_weights_and_pay_the_network() -> None:
    found = one(ranks=1, hosts=2, network_latency_us=20.0, network_gb_per_s=1.0)
    assert found.num_ranks == 2
    assert found.next_token.memory_s == pytest.approx(one().next_token.memory_s / 2, rel=0.01)
    assert found.next_token.all_reduce_s == pytest.approx(47 * (20e-6 + 4096 / 1e9))
    slow = one(ranks=1, hosts=2, network_latency_us=20000.0, network_gb_per_s=1.0)
    assert slow.bound_by == "all-reduce"


def test_a_batch_reads_the_weights_once_until_arithmetic_binds() -> None:
    one_row, many = one().next_token, one(work=Workload(batch=512)).next_token
    assert many.total_s < 512 * one_row.total_s / 10
    assert many.arithmetic_s > 5 * one_row.memory_s


def test_weights_that_a_cache_holds_are_read_at_its_rate() -> None:
    cached = ProductRate(kind="bfloat16", num_rows=1, matrix_bytes=1 << 20, weights_per_s=50e9)
    limits = ceilings(products=(cached, *ceilings().products))
    assert limits.product_seconds("bfloat16", 1000, 1, 1 << 20) == pytest.approx(1000 / 50e9)
    assert limits.product_seconds("bfloat16", 1000, 1, 1 << 30) == pytest.approx(1000 / 5e9)
    middle = limits.product_seconds("bfloat16", 1000, 1, 1 << 22)
    assert 1000 / 50e9 < middle < 1000 / 5e9


@pytest.mark.parametrize("window", [1, 5, 20, 100])
@pytest.mark.parametrize("before", [0, 3, 50])
def test_operations_within_a_window_are_counted_by_query(before: int, window: int) -> None:
    seen = sum(min(before + query, window) for query in range(1, 17))
    assert attention_flop(64, before, 16, window) == 4 * 64 * seen


def test_a_window_ends_the_growth_of_a_step_and_one_sum_a_layer_takes_half_the_time() -> None:
    long, longer = (Workload(prompt_tokens=16, context=context) for context in (2000, 4000))
    sliding = dataclasses.replace(LLAMA, windows=(500,) * LLAMA.num_layers)
    first, second = (predict(sliding, "int8", 1, 1, ceilings(), work).next_token.total_s for work in (long, longer))
    assert first == second < predict(LLAMA, "int8", 1, 1, ceilings(), long).next_token.total_s
    parallel = dataclasses.replace(LLAMA, parallel_residual=True)
    sums = [predict(model, "int8", 2, 1, ceilings(), long).next_token.all_reduce_s for model in (LLAMA, parallel)]
    assert 0.5 < sums[1] / sums[0] < 0.6


def test_what_does_not_fit_is_bound_by_capacity_and_never_the_best() -> None:
    rows = compare(LLAMA, KINDS, [1, 2], 1, ceilings(memory_bytes=2 * GIB), Workload())
    assert {row.dtype for row in rows if not row.fits} == {"bfloat16"}
    assert all(row.bound_by == "capacity" for row in rows if not row.fits)
    chosen = best(rows)
    assert chosen is not None and (chosen.dtype, chosen.num_ranks) == ("int4", 1)
    assert best([row for row in rows if not row.fits]) is None


def test_ranks_have_equally_many_cores_of_one_node() -> None:
    assert rank_counts(12, 2) == [2, 3, 4, 6, 12]
    assert rank_counts(1, 1) == [1]


def test_numbers_of_ranks_that_cannot_be_are_left_out_until_none_is_left() -> None:
    found: list[Prediction] = compare(LLAMA, ["bfloat16"], [32, 33], 1, ceilings(num_cores=64), Workload())
    assert [row.num_ranks for row in found] == [32]
    with pytest.raises(ShardingError, match="over 33 ranks"):
        compare(LLAMA, ["bfloat16"], [33], 1, ceilings(num_cores=64), Workload())


def test_a_token_reads_its_experts_and_a_batch_reads_more_of_them() -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = {**sizes, "vocab_size": 4096, "num_local_experts": 8, "num_experts_per_tok": 2}
    model = ARCHITECTURES["MixtralForCausalLM"](ConfigReader(Path("m"), config), "m")
    expert, attention, head = 3 * 512 * 1024, 4 * 512 * 512, 4096 * 512
    router = 64 * 512  # as wide as a panel in memory; 8 outputs are computed

    def found(batch: int) -> Prediction:
        return predict(model, "bfloat16", 1, 1, ceilings(), Workload(batch=batch, context=1, prompt_tokens=512))

    assert found(1).weight_bytes == 2 * (2 * (8 * expert + attention + router) + 2 * head) + 2 * 5 * 512
    once = found(1).next_token
    cached_s = 2 * 2 * 512 * 2 / 8e9
    assert once.memory_s + once.arithmetic_s == pytest.approx(
        (2 * (2 * expert + attention + 8 * 512) + head) / 5e9 + cached_s, rel=1e-3
    )
    four = found(4).next_token
    used = 8 * (1 - 0.75**4)  # experts of a layer that four tokens choose between them
    assert four.memory_s == pytest.approx((2 * (used * expert + attention) + head) / 5e9, rel=0.02)
    assert found(1).rank_bytes - found(1).weight_bytes - found(1).cache_bytes - PROCESS_BYTES == 2 * (
        512 * (3 * 512 + 3 * 512 + 2 * 512) + (2 * 512 + 15 * 9) * (2 * 512 + 1024 + 1024)
    )


def test_quantised_experts_keep_rows_in_whole_numbers_beside_tiles() -> None:
    config = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 100}
    config |= {"intermediate_size": 128, "num_local_experts": 4}
    model = ARCHITECTURES["MixtralForCausalLM"](ConfigReader(Path("m"), config), "m")
    plan, work = shard_plan(model, 1), Workload(prompt_tokens=512)
    plain, quantised = (_buffer_bytes(model, plan, 0, work, kind) for kind in (False, True))
    assert quantised - plain == 2 * (512 * 2 + 15 * 5) * 128
