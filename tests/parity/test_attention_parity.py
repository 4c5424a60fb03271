"""Native attention over the blocked cache, in every variant and element type, against float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from corebound.kernels import native, reference
from fixtures.numeric import DTYPES, assert_within_rounding

pytestmark = pytest.mark.native


@dataclass(frozen=True)
class Case:
    """Sequences with some queries and a context each; `kv_map` None means even groups."""

    queries: tuple[int, ...]
    contexts: tuple[int, ...]
    heads: int
    kv_heads: int
    dim: int
    block_size: int = 16
    alibi: bool = False
    kv_map: tuple[int, ...] | None = field(default=None)
    window: int = 0


CASES = {
    "decode of unequal lengths": Case((1, 1, 1), (1, 17, 200), 8, 2, 64),
    "decode with alibi": Case((1, 1), (64, 65), 3, 3, 64, alibi=True),
    "decode over many blocks": Case((1,), (700,), 4, 1, 128, block_size=32),
    "decode with more heads to a kv head than a group takes": Case((1,), (70,), 12, 1, 64),
    "prefill": Case((70,), (70,), 3, 3, 32, block_size=32),
    "prefill of one token": Case((1,), (1,), 2, 2, 64),
    "prefill with an odd head size and alibi": Case((130,), (130,), 2, 2, 33, alibi=True),
    "a tiny head": Case((3, 1), (3, 20), 2, 1, 1),
    "the second part of a prompt": Case((40,), (150,), 8, 2, 48),
    "prefill and decode in one batch, one sequence idle": Case(
        (1, 5, 0, 33), (40, 5, 3, 100), 5, 3, 40, alibi=True, kv_map=(0, 2, 1, 1, 0)
    ),
    "grouped prefill": Case((65,), (65,), 16, 2, 128),
    "decode within and beyond a window": Case((1, 1, 1), (30, 64, 200), 8, 2, 64, window=37),
    "prefill beyond a window": Case((150, 1), (150, 90), 4, 2, 33, window=20),
    "the second part of a prompt beyond a window, with alibi": Case((70,), (230,), 3, 3, 48, alibi=True, window=100),
    "decode in parts, whole and begun, with alibi": Case(
        (1, 1, 3, 1, 0, 1), (512, 513, 20, 1100, 3, 40), 5, 3, 40, alibi=True, kv_map=(0, 2, 1, 1, 0)
    ),
    "decode in parts, eight heads and six to a kv head": Case(
        (1, 1, 1, 1), (512, 1030, 77, 1), 14, 2, 64, kv_map=(0,) * 8 + (1,) * 6
    ),
    "decode in parts within a window": Case((1, 1, 2), (1300, 90, 700), 8, 2, 64, window=600),
    "heads of 80 dimensions, several items": Case((300, 2), (300, 70), 12, 2, 80),
    "a long prompt's second part, groups of 4": Case((150,), (661,), 4, 1, 96),
    "blocks of keys within a window": Case((330,), (700,), 2, 1, 64, window=290),
    "heads of 256 dimensions with alibi": Case((90, 70), (90, 333), 2, 1, 256, block_size=32, alibi=True),
    "heads of 64 dimensions past a whole block": Case((515,), (515,), 3, 1, 64, kv_map=(0, 0, 0)),
    "decode of eight heads and five to a kv head, with alibi, within a window": Case(
        (1, 1, 1), (700, 39, 3), 13, 2, 64, block_size=32, alibi=True, kv_map=(0,) * 8 + (1,) * 5, window=21
    ),
    "decode of four heads of 256 dimensions": Case((1,), (90,), 4, 1, 256),
    "decode of eight heads of 32 dimensions": Case((1,), (550,), 8, 1, 32),
    "decode of four heads of 96 dimensions in blocks of 24": Case((1,), (50,), 4, 1, 96, block_size=24),
    "decode of four heads of 96 dimensions": Case((1,), (50,), 4, 1, 96),
    "a prompt's last query alone, over more than a part": Case((17,), (1100,), 4, 1, 64),
    "a window of one": Case((5, 1), (9, 70), 2, 1, 16, window=1),
}


def build(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of attention: blocks out of order, NaN wherever no key of the sequence is."""
    generator = torch.Generator().manual_seed(1)
    num_blocks = sum(-(-length // case.block_size) for length in case.contexts) + 3
    order = torch.randperm(num_blocks, generator=generator).tolist()
    caches = [torch.full((num_blocks, case.kv_heads, case.block_size, case.dim), torch.nan) for _ in range(2)]
    width = max(-(-length // case.block_size) for length in case.contexts) + 1
    tables = torch.full((len(case.contexts), width), -1, dtype=torch.int32)
    for row, length in enumerate(case.contexts):
        for position in range(length):
            if position % case.block_size == 0:
                tables[row, position // case.block_size] = order.pop()
            block = int(tables[row, position // case.block_size])
            for cache in caches:
                cache[block, :, position % case.block_size] = torch.randn(case.kv_heads, case.dim, generator=generator)
    starts = torch.tensor([0, *torch.tensor(case.queries).cumsum(0).tolist()], dtype=torch.int32)
    return {
        "q": torch.randn(sum(case.queries), case.heads, case.dim, generator=generator).to(dtype),
        "key_cache": caches[0].to(dtype),
        "value_cache": caches[1].to(dtype),
        "block_tables": tables,
        "query_starts": starts,
        "context_lengths": torch.tensor(case.contexts, dtype=torch.int32),
        "scale": case.dim**-0.5,
        "alibi_slopes": torch.tensor([2.0 ** -(h + 1) for h in range(case.heads)]) if case.alibi else None,
        "kv_heads": None if case.kv_map is None else torch.tensor(case.kv_map, dtype=torch.int32),
        "window": case.window,
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention_is_that_of_float64(variant: str, case: Case, dtype: torch.dtype) -> None:
    arguments = build(case, dtype)
    precise: dict[str, Any] = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    expected = reference.attention(**precise)
    found = native.attention(*arguments.values())
    # A weighted mean of values of size 1: an error of a score is a relative error of its weight.
    magnitude = torch.full_like(expected, 4.0)
    if dtype == torch.bfloat16:  # of several queries, weights and their sum are off by half a unit of bfloat16, and by
        # tiles those of one
        several = torch.tensor([n > 1 or variant == "amx" for n in case.queries for _ in range(n)])
        mean = reference.attention(**{**precise, "value_cache": precise["value_cache"].abs()})
        magnitude[several] += mean[several] * 2 * (2.0**-9 + 2.0**-13) / (4 * 2.0**-23 * (case.dim + 1) ** 0.5)
    assert_within_rounding(found, expected, magnitude=magnitude, length=case.dim)


@pytest.mark.parametrize("window", [0, 290])
def test_bits_do_not_depend_on_the_number_of_threads_nor_with_tiles_on_how_a_prompt_is_cut(
    variant: str, window: int
) -> None:
    whole = build(Case((330,), (700,), 6, 2, 64, window=window), torch.bfloat16)
    q, threads = whole["q"], torch.get_num_threads()
    assert isinstance(q, Tensor)
    # Where AVX-512 multiplies pairs, the order of a sum depends on how many rows are left.
    cuts = ((330, 1), (330, 2)) if variant.startswith("avx512") else ((330, 1), (37, 1), (2, 2), (291, 2))
    try:
        torch.set_num_threads(2)
        expected = native.attention(*whole.values())
        seen = 0
        for count, num_threads in cuts:
            torch.set_num_threads(num_threads)
            part = {
                "q": q[seen : seen + count],
                "query_starts": torch.tensor([0, count], dtype=torch.int32),
                "context_lengths": torch.tensor([370 + seen + count], dtype=torch.int32),
            }
            assert torch.equal(native.attention(*(whole | part).values()), expected[seen : seen + count])
            seen = (seen + count) % 330
    finally:
        torch.set_num_threads(threads)


def test_attention_over_no_tokens_is_empty(variant: str) -> None:
    arguments = build(Case((0,), (3,), 2, 1, 8), torch.float32)
    assert native.attention(*arguments.values()).shape == (0, 2, 8)


def test_scores_beyond_the_range_of_exp_do_not_overflow(variant: str) -> None:
    arguments = build(Case((5,), (90,), 2, 1, 16), torch.float32)
    q = arguments["q"]
    assert isinstance(q, Tensor)
    found = native.attention(*(arguments | {"q": q * 1e4}).values())
    expected = reference.attention(**(arguments | {"q": q * 1e4}))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def between_others(cache: Tensor) -> Tensor:
    """Return the cache with blocks of other layers, which are NaN, between its own."""
    whole = torch.full((cache.shape[0], 3, *cache.shape[1:]), torch.nan, dtype=cache.dtype)
    whole[:, 1] = cache
    return whole[:, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", ["decode of unequal lengths", "prefill", "grouped prefill"])
def test_blocks_may_lie_apart(variant: str, name: str, dtype: torch.dtype) -> None:
    arguments = build(CASES[name], dtype)
    apart = {place: between_others(arguments[place]) for place in ("key_cache", "value_cache")}
    found = native.attention(*(arguments | apart).values())
    assert torch.equal(found, native.attention(*arguments.values()))


def test_tokens_are_stored_in_blocks_that_lie_apart(variant: str) -> None:
    caches = [between_others(torch.zeros(4, 2, 16, 8)) for _ in range(2)]
    keys, values, slots = torch.randn(3, 2, 8), torch.randn(3, 2, 8), torch.tensor([1, 17, 63])
    native.store_kv(keys, values, *caches, slots)
    for cache, rows in zip(caches, (keys, values), strict=True):
        assert torch.equal(cache[slots // 16, :, slots % 16], rows)
        assert cache.count_nonzero() == rows.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", ["decode of unequal lengths", "decode with alibi", "prefill", "grouped prefill"])
@pytest.mark.parametrize("place", ["q", "key_cache", "value_cache"])
def test_nan_in_a_query_a_key_or_a_value_reaches_every_output_that_it_should(
    variant: str, place: str, name: str, dtype: torch.dtype
) -> None:
    arguments = build(CASES[name], dtype)
    tables, poisoned = arguments["block_tables"], arguments[place]
    assert isinstance(tables, Tensor) and isinstance(poisoned, Tensor)
    if place == "q":
        poisoned[0, 1, 3] = torch.nan
    else:  # the first position, which every query of the first sequence sees
        poisoned[int(tables[0, 0]), 0, 0, 3] = torch.nan
    expected = reference.attention(**arguments)
    found = native.attention(*arguments.values())
    assert expected.isnan().any() and not expected.isnan().all()
    assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize("position", [0, 5, 63, 64, 69])
def test_nan_in_any_one_key_reaches_the_queries_that_see_it(variant: str, position: int) -> None:
    arguments = build(CASES["prefill"], torch.float32)
    keys, tables = arguments["key_cache"], arguments["block_tables"]
    assert isinstance(keys, Tensor) and isinstance(tables, Tensor)
    keys[int(tables[0, position // 32]), 1, position % 32, 0] = torch.nan
    found = native.attention(*arguments.values())
    sees = torch.arange(70) >= position
    assert torch.equal(found[:, 1].isnan().all(-1), sees)
    assert torch.equal(found[:, 1].isnan().any(-1), sees)
    assert not found[:, [0, 2]].isnan().any()
