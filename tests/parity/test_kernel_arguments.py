"""Native operators refuse what does not fit, with what was expected and found, before they touch memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from corebound.errors import KernelError
from corebound.kernels import reference

pytestmark = pytest.mark.native

INT32 = torch.int32


@pytest.fixture(scope="module")
def ops() -> Any:
    from corebound.kernels import native

    native.load()
    return native


def test_an_element_type_without_kernels_is_named(ops: Any) -> None:
    with pytest.raises(KernelError, match="rms_norm: expected float32, bfloat16 or float16, found float64"):
        ops.rms_norm(torch.zeros(1, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), 1e-5)


def test_mixed_types_and_wrong_shapes_are_named(ops: Any) -> None:
    x = torch.zeros(2, 4)
    with pytest.raises(KernelError, match="rms_norm: expected float32, found bfloat16"):
        ops.rms_norm(x, torch.zeros(4).bfloat16(), 1e-5)
    with pytest.raises(KernelError, match=r"layer_norm: bias: expected shape \[4\], found \[5\]"):
        ops.layer_norm(x, torch.zeros(4), torch.zeros(5), 1e-5)
    with pytest.raises(KernelError, match=r"add_rms_norm: residual: expected shape \[2, 4\], found \[1, 4\]"):
        ops.add_rms_norm(x, x[:1], torch.zeros(4), 1e-5)
    with pytest.raises(KernelError, match=r"linear: weight: expected shape \[\*, 4\], found \[3, 5\]"):
        ops.linear(x, torch.zeros(3, 5))
    with pytest.raises(KernelError, match="silu_mul: expected an even number of columns, found 5"):
        ops.silu_mul(torch.zeros(1, 5))
    with pytest.raises(KernelError, match=r"split_qkv: expected shape \[\*, 12\], found \[2, 4\]"):
        ops.split_qkv(x, "stacked", 2, 2, 2)


def test_unknown_names_are_refused_with_the_valid_ones(ops: Any) -> None:
    with pytest.raises(KernelError, match="unknown layout 'fused', expected per_head or stacked"):
        ops.split_qkv(torch.zeros(1, 6), "fused", 1, 1, 2)
    with pytest.raises(KernelError, match="unknown approximation 'erf', expected tanh or none"):
        ops.gelu(torch.zeros(1), "erf")
    with pytest.raises(KernelError, match="per_head needs equal head counts, found 2 query and 1 kv"):
        ops.split_qkv(torch.zeros(1, 8), "per_head", 2, 1, 2)


def test_positions_and_slots_outside_their_tables_are_refused(ops: Any) -> None:
    q, angles = torch.zeros(2, 1, 4), torch.zeros(3, 2)
    for position in (3, -1):
        with pytest.raises(KernelError, match=f"position {position} of token 1, expected 0 to 2"):
            ops.rotary(q, q, torch.tensor([0, position]), angles, angles, False)
    with pytest.raises(KernelError, match="cos has 3 columns, expected at most half the head size 4"):
        ops.rotary(q, q, torch.tensor([0, 1]), torch.zeros(3, 3), torch.zeros(3, 3), False)
    cache = torch.zeros(2, 1, 16, 4)
    for slot in (32, -1):
        with pytest.raises(KernelError, match=f"slot {slot} of token 1, expected 0 to 31"):
            ops.store_kv(q, q, cache, cache.clone(), torch.tensor([0, slot]))
    with pytest.raises(KernelError, match="expected caches whose blocks are contiguous, found strided ones"):
        strided = torch.zeros(2, 16, 1, 4).transpose(1, 2)[:, :, ::2]
        ops.store_kv(q, q, strided, strided, torch.tensor([0, 1]))


def attend(ops: Any, **changes: Any) -> Tensor:
    cache = torch.zeros(4, 2, 16, 8)
    arguments = {
        "q": torch.zeros(3, 4, 8),
        "key_cache": cache,
        "value_cache": cache.clone(),
        "block_tables": torch.tensor([[0, 1], [2, 3]], dtype=INT32),
        "query_starts": torch.tensor([0, 1, 3], dtype=INT32),
        "context_lengths": torch.tensor([20, 2], dtype=INT32),
        "scale": 1.0,
        "alibi_slopes": None,
        "kv_heads": None,
        "window": 0,
    }
    result: Tensor = ops.attention(*(arguments | changes).values())
    return result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"block_tables": torch.tensor([[0, 4], [2, 3]], dtype=INT32)},
            r"\[0\]\[1\] is 4, expected 0 to 3",
        ),
        ({"block_tables": torch.tensor([[0, 1], [-1, 3]], dtype=INT32)}, r"block_tables\[1\]\[0\] is -1"),
        ({"context_lengths": torch.tensor([33, 2], dtype=INT32)}, "sequence 0 has 1 queries and context length 33"),
        ({"context_lengths": torch.tensor([20, 1], dtype=INT32)}, "sequence 1 has 2 queries and context length 1"),
        ({"window": -1}, "window -1, expected 0 for all keys"),
        ({"query_starts": torch.tensor([0, 1, 2], dtype=INT32)}, "query_starts run from 0 to 2, expected 0 to 3"),
        ({"query_starts": torch.tensor([0, 4, 3], dtype=INT32)}, "sequence 1 has -1 queries"),
        ({"query_starts": torch.tensor([0, 1, 3])}, "query_starts: expected int32, found int64"),
        ({"kv_heads": torch.tensor([0, 0, 1, 2], dtype=INT32)}, r"kv_heads\[3\] is 2, expected 0 to 1"),
        ({"alibi_slopes": torch.zeros(3)}, r"alibi_slopes: expected shape \[4\], found \[3\]"),
        ({"value_cache": torch.zeros(4, 2, 32, 8)}, "value_cache: expected shape"),
        ({"key_cache": torch.zeros(4, 2, 16, 16)[..., ::2]}, "expected caches whose blocks are contiguous"),
        (
            {"value_cache": torch.zeros(4, 3, 16, 8)[:, :2]},
            "blocks of keys are 256 elements apart, those of values 384, expected the same",
        ),
        (
            {"key_cache": torch.zeros(1, 2, 16, 8).expand(4, 2, 16, 8)},
            "expected caches whose blocks do not overlap, found blocks of 256 elements that are 0 apart",
        ),
        (
            {"value_cache": torch.zeros(640).as_strided((4, 2, 16, 8), (128, 128, 8, 1))},
            "found blocks of 256 elements that are 128 apart",
        ),
        ({"q": torch.zeros(3, 5, 8)}, "5 query heads do not divide into 2 groups; pass kv_heads"),
    ],
)
def test_attention_refuses_indices_that_lead_outside_the_cache(ops: Any, changes: Any, message: str) -> None:
    assert attend(ops).shape == (3, 4, 8)
    with pytest.raises(KernelError, match=message):
        attend(ops, **changes)


def test_caches_of_one_block_may_come_from_memory_with_any_distance_of_blocks(ops: Any) -> None:
    cache = torch.randn(2, 1, 2, 16, 8, generator=torch.Generator().manual_seed(0))
    small = {
        "q": torch.ones(3, 4, 8),
        "block_tables": torch.zeros((2, 1), dtype=INT32),
        "context_lengths": torch.tensor([3, 2], dtype=INT32),
    }
    strided = cache[1].as_strided((1, 2, 16, 8), (4096, 128, 8, 1), cache[1].storage_offset())
    expected = attend(ops, key_cache=cache[0], value_cache=cache[1], **small)
    assert torch.equal(attend(ops, key_cache=cache[0], value_cache=strided, **small), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_norms_in_float32_are_multiplied_so_with_rows_of_16_bits(ops: Any, dtype: torch.dtype) -> None:
    """Gemma's 1 + w: a weight that 16 bits cannot hold."""
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(3, 20, generator=generator).to(dtype) for _ in range(2))
    weight = 1 + 0.01 * torch.randn(20, generator=generator)
    assert torch.equal(ops.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
    normed, total = ops.add_rms_norm(x, residual, weight, 1e-6)
    assert normed.dtype == dtype
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, reference.rms_norm(total, weight, 1e-6))
