"""Every native operator but attention, in every variant and element type, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from corebound.kernels import forced, native, reference
from fixtures.numeric import DTYPES, assert_within_rounding

pytestmark = pytest.mark.native

# Around the vector widths of all variants (4, 8, 16 and, for bf16 products, 32), and one long odd length.
WIDTHS = (1, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 100, 4096 + 13)
ROWS = (0, 1, 3)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


def shapes() -> Iterator[tuple[int, int]]:
    yield from ((rows, width) for rows in ROWS for width in WIDTHS)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def wide(*tensors: Tensor) -> list[Tensor]:
    return [t.double() for t in tensors]


def compare_rows(op: Callable[..., Tensor], meaning: Callable[..., Tensor], *inputs: Tensor, length: int) -> None:
    expected = meaning(*wide(*inputs))
    assert_within_rounding(op(*inputs), expected, magnitude=largest(expected), length=length)


def test_layer_norm_is_that_of_float64(variant: str, dtype: torch.dtype) -> None:
    for rows, width in shapes():
        x, weight, bias = (random(n, width, dtype=dtype, seed=n) for n in (rows, 1, 1))
        x = x + 3  # a mean far from zero shows a one-pass variance
        compare_rows(
            lambda x, w, b: native.layer_norm(x, w[0], b[0], 1e-5),
            lambda x, w, b: reference.layer_norm(x, w[0], b[0], 1e-5),
            x,
            weight,
            bias,
            length=16 * width,
        )


def test_rms_norm_is_that_of_float64(variant: str, dtype: torch.dtype) -> None:
    for rows, width in shapes():
        compare_rows(
            lambda x, w: native.rms_norm(x, w[0], 1e-6),
            lambda x, w: reference.rms_norm(x, w[0], 1e-6),
            random(rows, width, dtype=dtype),
            random(1, width, dtype=dtype),
            length=width,
        )


def test_norms_with_a_residual_return_the_rounded_sum_and_normalise_it(variant: str, dtype: torch.dtype) -> None:
    for rows, width in shapes():
        x, residual, weight = (random(n, width, dtype=dtype, seed=n + 5) for n in (rows, rows, 1))
        total = x + residual
        y, found = native.add_rms_norm(x, residual, weight[0], 1e-6)
        assert torch.equal(found, total)
        assert torch.equal(y, native.rms_norm(total, weight[0], 1e-6))
        y, found = native.add_layer_norm(x, residual, weight[0], weight[0], 1e-5)
        assert torch.equal(found, total)
        assert torch.equal(y, native.layer_norm(total, weight[0], weight[0], 1e-5))


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_is_that_of_float64_far_into_both_tails(variant: str, dtype: torch.dtype, approximate: str) -> None:
    for width in WIDTHS:
        x = (random(width, dtype=torch.float32) * 4).to(dtype)
        expected = reference.gelu(x.double(), approximate)
        assert_within_rounding(native.gelu(x, approximate), expected, magnitude=expected.abs() + 1e-6, length=64)
    ends = torch.tensor([0.0, -0.0, 1e-30, -12.0, 12.0, -300.0, 300.0, float("nan")]).to(dtype)
    result = native.gelu(ends, approximate)
    assert torch.isnan(result[7])
    assert torch.equal(result[:3].float(), ends[:3].float() / 2)
    assert torch.equal(result[[4, 6]], ends[[4, 6]])
    assert float(result[[3, 5]].abs().max()) < 1e-9


def test_silu_mul_is_that_of_float64(variant: str, dtype: torch.dtype) -> None:
    for rows, width in shapes():
        gate_up = random(rows, 2 * width, dtype=dtype) * 3
        expected = reference.silu_mul(gate_up.double())
        assert_within_rounding(native.silu_mul(gate_up), expected, magnitude=expected.abs(), length=16)
    ends = torch.tensor([[-200.0, 200.0, 1.0, 1.0]]).to(dtype)
    assert native.silu_mul(ends).tolist() == [[pytest.approx(0.0, abs=1e-30), 200.0]]


@pytest.mark.parametrize("layout", ["per_head", "stacked"])
def test_split_qkv_copies_every_element_to_its_place(variant: str, dtype: torch.dtype, layout: str) -> None:
    for tokens, heads, kv_heads, dim in ((0, 2, 2, 8), (1, 1, 1, 1), (3, 5, 5, 33), (2, 6, 2, 64)):
        if layout == "per_head" and heads != kv_heads:
            continue
        qkv = random(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
        parts = native.split_qkv(qkv, layout, heads, kv_heads, dim)
        for found, expected in zip(parts, reference.split_qkv(qkv, layout, heads, kv_heads, dim), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_is_that_of_float64_and_leaves_the_rest_alone(
    variant: str, dtype: torch.dtype, interleaved: bool
) -> None:
    for tokens, heads, kv_heads, dim, half in ((0, 2, 1, 8, 4), (1, 1, 1, 2, 1), (3, 5, 2, 34, 17), (4, 3, 3, 80, 16)):
        q, k = random(tokens, heads, dim, dtype=dtype), random(tokens, kv_heads, dim, dtype=dtype, seed=1)
        angles = random(50, half, dtype=torch.float32)
        positions = torch.arange(tokens) * 7 % 50
        cos, sin = angles.cos(), angles.sin()
        expected = reference.rotary(q.double(), k.double(), positions, cos.double(), sin.double(), interleaved)
        found = native.rotary(q, k, positions, cos, sin, interleaved)
        for x, result, meaning in zip((q, k), found, expected, strict=True):
            assert_within_rounding(result, meaning, magnitude=2 * largest(x), length=2)
            assert torch.equal(result[..., 2 * half :], x[..., 2 * half :])


def test_store_kv_writes_its_slots_and_nothing_else(variant: str, dtype: torch.dtype) -> None:
    for tokens, kv_heads, dim, block_size in ((0, 1, 8, 16), (1, 1, 1, 16), (20, 3, 33, 16), (40, 2, 64, 32)):
        k, v = random(tokens, kv_heads, dim, dtype=dtype), random(tokens, kv_heads, dim, dtype=dtype, seed=1)
        found = [torch.zeros(4, kv_heads, block_size, dim, dtype=dtype) for _ in range(2)]
        expected = [cache.clone() for cache in found]
        slots = torch.randperm(4 * block_size, generator=torch.Generator().manual_seed(0))[:tokens]
        native.store_kv(k, v, *found, slots)
        reference.store_kv(k, v, *expected, slots)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_is_that_of_float64_for_any_size(variant: str, dtype: torch.dtype, with_bias: bool) -> None:
    sizes = [(rows, inputs, 7) for rows in (0, 1, 2, 3, 5, 8) for inputs in WIDTHS]
    for rows, inputs, outputs in [*sizes, (1, 0, 3), (1, 64, 1), (8, 96, 301), (1, 127, 301)]:
        x, weight = random(rows, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype, seed=2)
        bias = random(outputs, dtype=dtype, seed=3) if with_bias else None
        terms = x.double().abs() @ weight.double().abs().T + 3
        expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
        assert_within_rounding(native.linear(x, weight, bias), expected, magnitude=terms, length=0, factor=16)


def test_more_rows_than_the_kernel_takes_are_left_to_torch(variant: str) -> None:
    x, weight = random(9, 40, dtype=torch.float32), random(11, 40, dtype=torch.float32)
    assert torch.equal(native.linear(x, weight), torch.nn.functional.linear(x, weight))
    with pytest.raises(RuntimeError, match="at most 8 rows, found 9"):
        torch.ops.corebound.linear(x, weight, None)


def test_strided_inputs_give_what_contiguous_ones_give(variant: str, dtype: torch.dtype) -> None:
    base = random(6, 2 * 40, dtype=dtype)
    strided, weight = base[::2, ::2], random(40, dtype=dtype)
    assert torch.equal(native.rms_norm(strided, weight, 1e-5), native.rms_norm(strided.contiguous(), weight, 1e-5))
    assert torch.equal(native.gelu(strided), native.gelu(strided.contiguous()))
    assert torch.equal(native.linear(strided, base[:, ::2]), native.linear(strided.contiguous(), base[:, ::2].clone()))


@pytest.mark.parametrize("rows", range(1, 9))
def test_several_threads_give_the_bits_of_one(variant: str, rows: int) -> None:
    # Threads cut the outputs elsewhere, so a product whose roundings depend on its neighbours would differ.
    x, weight = random(rows, 300, dtype=torch.float32), random(1009, 300, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = native.linear(x, weight)
        torch.set_num_threads(2)
        assert torch.equal(native.linear(x, weight), one)
    finally:
        torch.set_num_threads(threads)


def test_forced_reference_and_native_operators_agree(variant: str) -> None:
    from corebound import kernels

    x, weight = random(3, 100, dtype=torch.float32), random(100, dtype=torch.float32)

    def run() -> list[Tensor]:
        return [kernels.layer_norm(x, weight, weight, 1e-5), kernels.gelu(x), kernels.silu_mul(x)]

    with forced(mode="reference") as rows:
        assert {row["implementation"] for row in rows} == {"reference"}
        expected = run()
    with forced(mode="native", isa=variant) as rows:
        assert {(row["implementation"], row["variant"]) for row in rows} == {("native", variant)}
        found = run()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=2e-6)
