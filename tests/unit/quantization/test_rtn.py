"""Rounding to nearest stays within half a step of every weight, for any weights, shapes and schemes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corebound.errors import KernelError
from corebound.quantization import GROUP_SIZES, Scheme
from corebound.quantization.matrix import QuantizedMatrix, concatenate
from corebound.quantization.reference import dequantize, error_bound, linear
from corebound.quantization.rtn import quantize

SCHEMES = [Scheme(*parts) for parts in itertools.product((4, 8), (None, *GROUP_SIZES), (True, False))]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
names = st.sampled_from(SCHEMES)


def random_weight(num_rows: int, num_columns: int, *, seed: int = 0, exponent: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64) * 2.0**exponent


def check_bound(weight: torch.Tensor, matrix: QuantizedMatrix) -> None:
    """Check every value against the meaning of codes in float64, which is computed here from nothing else."""
    columns = torch.arange(weight.shape[1]) // matrix.group_size
    scales, zeros = matrix.scales.double()[:, columns], matrix.zeros.double()[:, columns]
    values = (matrix.codes.double() - zeros) * scales
    assert bool(((weight.double() - values).abs() <= error_bound(matrix).double()).all())
    assert bool((error_bound(matrix).double() <= scales * 0.50007).all())
    assert torch.equal(dequantize(matrix).double(), values), "float32 holds every value exactly"


@settings(max_examples=150, deadline=None)
@given(
    scheme=names,
    num_rows=st.integers(1, 9),
    num_columns=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    exponent=st.integers(-14, 10),
    shift=st.sampled_from((0.0, 1.0, -3.0)),
    seed=st.integers(0, 1 << 30),
)
def test_every_value_is_within_half_a_step_of_its_weight(
    scheme: Scheme, num_rows: int, num_columns: int, dtype: torch.dtype, exponent: int, shift: float, seed: int
) -> None:
    weight = (random_weight(num_rows, num_columns, seed=seed, exponent=exponent) + shift * 2.0**exponent).to(dtype)
    matrix = quantize(weight, scheme)
    check_bound(weight, matrix)
    assert matrix.shape == (num_rows, num_columns)
    assert matrix.scales.shape == (num_rows, scheme.num_groups(num_columns))
    assert int(matrix.codes.max()) <= scheme.largest_code
    assert matrix.has_scales_of(torch.bfloat16)
    assert matrix.symmetric or not scheme.symmetric


@settings(max_examples=150, deadline=None)
@given(
    scheme=names,
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=70),
)
def test_any_values_stay_within_the_bound(scheme: Scheme, values: list[float]) -> None:
    weight = torch.tensor([values])
    check_bound(weight, quantize(weight, scheme))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_the_step_is_no_longer_than_the_range_needs(scheme: Scheme) -> None:
    weight = random_weight(64, 256, seed=3).float()
    matrix = quantize(weight, scheme)
    groups = weight.unflatten(1, (-1, matrix.group_size))
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    span = 2 * torch.maximum(high, -low) if scheme.symmetric else high - low
    ratio = matrix.scales * scheme.largest_code / span
    assert float(ratio.min()) >= 1 - 2**-20
    assert float(ratio.max()) <= 1 + 2**-7, "a bfloat16 above is at most 2**-7 away"


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_zeros_stay_exactly_zero(scheme: Scheme) -> None:
    weight = random_weight(5, 200, seed=1).float()
    weight[:, ::7] = 0
    weight[2] = 0
    weight[3, 128:] = 0
    values = dequantize(quantize(weight, scheme))
    assert bool((values[weight == 0] == 0).all())


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_numbers_below_the_normal_ones_become_zero(scheme: Scheme) -> None:
    matrix = quantize(torch.full((2, 40), 1e-42), scheme)
    assert bool((dequantize(matrix) == 0).all())
    assert bool((matrix.scales >= torch.finfo(torch.float32).tiny).all())


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_codes_that_are_already_whole_are_found_again(scheme: Scheme) -> None:
    # A group that reaches from end to end, in steps that are powers of two, is stored without any loss.
    size = scheme.group_size or 300
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, scheme.largest_code + 1, (6, 2, size), generator=generator)
    codes[..., 0], codes[..., 1] = 0, scheme.largest_code
    if scheme.symmetric:
        # The range is from half a step before the middle one to half a step after: ends as far from it on either side.
        values = (codes - scheme.largest_code / 2) * 2.0**-7
        matrix = quantize(values.flatten(1), scheme)
        assert torch.equal(matrix.scales, torch.full_like(matrix.scales, 2.0**-7))
    else:
        values = (codes - 3.0) * 2.0**-7
        if scheme.group_size is None:
            values = values.flatten(1).unsqueeze(1)
        matrix = quantize(values.flatten(1), scheme)
        assert bool((matrix.zeros == 3).all())
        assert torch.equal(dequantize(matrix), values.flatten(1))


def test_rows_can_be_quantized_in_parts() -> None:
    weight = random_weight(700, 333, seed=2).bfloat16()
    scheme = Scheme(4, 64, False)
    whole = quantize(weight, scheme)
    joined = concatenate([quantize(part, scheme) for part in (weight[:1], weight[1:500], weight[500:])])
    for name in ("codes", "scales", "zeros"):
        assert torch.equal(getattr(whole, name), getattr(joined, name)), name


def test_columns_from_a_group_on_give_the_codes_of_the_whole() -> None:
    weight = random_weight(9, 320, seed=4)
    scheme = Scheme(8, 64, True)
    whole, part = quantize(weight, scheme), quantize(weight[:, 128:], scheme)
    assert torch.equal(part.codes, whole.codes[:, 128:])
    assert torch.equal(part.scales, whole.scales[:, 2:])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1)])
def test_tiny_matrices_are_no_special_case(shape: tuple[int, int]) -> None:
    matrix = quantize(torch.ones(shape), Scheme(4, 32, True))
    assert matrix.shape == shape
    assert dequantize(matrix).shape == shape


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scheme", [Scheme(4, 32, True), Scheme(8, None, False)], ids=lambda scheme: scheme.name)
def test_a_weight_that_is_not_finite_is_named(scheme: Scheme, value: float) -> None:
    weight = torch.ones(2000, 100)
    weight[1500, 98] = value
    with pytest.raises(KernelError, match=rf"found {value:g} in row 1500, column 98"):
        quantize(weight, scheme)


def test_a_range_beyond_float32_is_refused() -> None:
    with pytest.raises(KernelError, match=r"found weights up to 3e\+38"):
        quantize(torch.tensor([[3e38, -3e38]]), Scheme(8, None, False))


def test_matrices_of_one_product_must_agree() -> None:
    weight = random_weight(4, 64)
    with pytest.raises(KernelError, match="4 bits, groups of 32, 64 inputs and 8 bits, groups of 32, 64 inputs"):
        concatenate([quantize(weight, Scheme(4, 32, True)), quantize(weight, Scheme(8, 32, True))])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_the_product_is_that_of_the_values(scheme: Scheme, dtype: torch.dtype) -> None:
    matrix = quantize(random_weight(11, 150, seed=6), scheme)
    x, bias = random_weight(3, 150, seed=7).to(dtype), random_weight(1, 11, seed=8)[0].to(dtype)
    expected = x.double() @ dequantize(matrix).double().t() + bias.double()
    found = linear(x, matrix, bias)
    assert found.dtype == dtype
    bound = max(torch.finfo(dtype).eps, 150 * torch.finfo(torch.float32).eps) * float(expected.abs().max())
    assert float((found.double() - expected).abs().max()) <= bound


def test_inputs_are_read_in_the_order_of_the_columns() -> None:
    weight, order = random_weight(5, 96, seed=9), torch.randperm(96, generator=torch.Generator().manual_seed(1))
    plain = quantize(weight[:, order], Scheme(4, 32, False))
    ordered = QuantizedMatrix(
        bits=4, group_size=32, codes=plain.codes, scales=plain.scales, zeros=plain.zeros, column_order=order
    )
    assert torch.equal(dequantize(ordered)[:, order], dequantize(plain))
    x = random_weight(2, 96, seed=10)
    assert torch.allclose(linear(x, ordered), linear(x[:, order], plain))


def test_products_whose_inputs_are_in_different_orders_are_not_joined() -> None:
    plain = quantize(random_weight(5, 32), Scheme(4, 32, False))
    parts = {"bits": 4, "group_size": 32, "codes": plain.codes, "scales": plain.scales, "zeros": plain.zeros}
    forward = QuantizedMatrix(**parts, column_order=torch.arange(32))  # type: ignore[arg-type]  # fields of several types
    backward = QuantizedMatrix(**parts, column_order=torch.arange(32).flip(0))  # type: ignore[arg-type]  # fields of several types
    with pytest.raises(KernelError, match="in different orders"):
        concatenate([forward, backward])
    with pytest.raises(KernelError, match="in different orders"):
        concatenate([forward, plain])
    assert concatenate([forward, forward]).column_order is forward.column_order
