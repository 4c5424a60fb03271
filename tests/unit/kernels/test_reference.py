"""The reference implementations against torch's own functions, which they do not use."""

from __future__ import annotations

import pytest
import torch

from corebound.errors import KernelError
from corebound.kernels import reference

F = torch.nn.functional


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_norms_equal_torch() -> None:
    x, weight, bias = torch.randn(3, 20), torch.randn(20), torch.randn(20)
    torch.testing.assert_close(
        reference.layer_norm(x, weight, bias, 1e-5), F.layer_norm(x, (20,), weight, bias, eps=1e-5)
    )
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-5), F.rms_norm(x, (20,), weight, eps=1e-5))


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_equals_torch(approximate: str) -> None:
    x = torch.randn(100) * 3
    torch.testing.assert_close(reference.gelu(x, approximate), F.gelu(x, approximate=approximate))


def test_rotating_turns_each_pair_by_its_angle() -> None:
    angle = torch.tensor([[0.3, 1.1]])
    cos, sin, position = angle.cos(), angle.sin(), torch.zeros(1, dtype=torch.int64)
    x = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]])
    halves, _ = reference.rotary(x, x, position, cos, sin)
    c, s = cos[0], sin[0]
    torch.testing.assert_close(halves[0, 0], torch.stack([c[0], -2 * s[1], s[0], 2 * c[1]]))
    pairs, _ = reference.rotary(x, x, position, cos, sin, interleaved=True)
    torch.testing.assert_close(pairs[0, 0], torch.stack([c[0], s[0], -2 * s[1], 2 * c[1]]))


def test_attention_equals_torch_through_a_cache_with_blocks_out_of_order() -> None:
    q, k, v = torch.randn(7, 4, 8), torch.randn(7, 2, 8), torch.randn(7, 2, 8)
    caches = torch.zeros(6, 2, 4, 8), torch.zeros(6, 2, 4, 8)
    reference.store_kv(k, v, *caches, torch.tensor([20, 21, 22, 23, 8, 9, 10]))
    table = torch.tensor([[5, 2]], dtype=torch.int32)
    starts, lengths = torch.tensor([0, 7], dtype=torch.int32), torch.tensor([7], dtype=torch.int32)
    found = reference.attention(q, *caches, table, starts, lengths, 0.3)
    expected = F.scaled_dot_product_attention(
        *(t.transpose(0, 1)[None] for t in (q, k, v)), is_causal=True, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(found, expected[0].transpose(0, 1))


def test_alibi_lowers_a_score_by_slope_times_distance() -> None:
    # Equal keys: the weights are the softmax of the distances alone.
    caches = torch.ones(1, 1, 4, 1), torch.tensor([1.0, 2.0, 3.0, 0.0]).view(1, 1, 4, 1)
    out = reference.attention(
        torch.ones(1, 1, 1),
        *caches,
        torch.zeros(1, 1, dtype=torch.int32),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([3], dtype=torch.int32),
        1.0,
        torch.tensor([0.5]),
    )
    weights = torch.softmax(torch.tensor([-1.0, -0.5, 0.0]), 0)
    torch.testing.assert_close(out.flatten(), (weights * torch.tensor([1.0, 2.0, 3.0])).sum().view(1))


def test_split_layouts_differ_in_where_a_head_finds_its_parts() -> None:
    qkv = torch.arange(6.0).view(1, 6)
    assert [t.flatten().tolist() for t in reference.split_qkv(qkv, "per_head", 2, 2, 1)] == [[0, 3], [1, 4], [2, 5]]
    assert [t.flatten().tolist() for t in reference.split_qkv(qkv, "stacked", 2, 2, 1)] == [[0, 1], [2, 3], [4, 5]]
    assert [t.flatten().tolist() for t in reference.split_qkv(qkv, "stacked", 4, 1, 1)] == [[0, 1, 2, 3], [4], [5]]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(KernelError, match="unknown layout 'by_head', expected per_head or stacked"):
        reference.split_qkv(torch.zeros(1, 6), "by_head", 2, 2, 1)
    with pytest.raises(KernelError, match="equal head counts, found 4 query and 1 kv"):
        reference.split_qkv(torch.zeros(1, 6), "per_head", 4, 1, 1)
    with pytest.raises(KernelError, match="expected 6 columns, found 7"):
        reference.split_qkv(torch.zeros(1, 7), "stacked", 2, 2, 1)
    with pytest.raises(KernelError, match="expected tanh or none"):
        reference.gelu(torch.zeros(1), "sigmoid")
    with pytest.raises(KernelError, match="5 query heads do not divide into 2 groups"):
        reference.even_kv_heads(5, 2)


def test_sixteen_bit_inputs_are_computed_in_float32_and_rounded_once() -> None:
    x, weight = torch.randn(2, 64).bfloat16(), torch.randn(64).bfloat16()
    expected = reference.rms_norm(x.float(), weight.float(), 1e-5).bfloat16()
    assert torch.equal(reference.rms_norm(x, weight, 1e-5), expected)
