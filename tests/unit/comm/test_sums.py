"""The arithmetic of the collectives, variant by variant, against torch's own conversions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from corebound.comm import shm_ops
from corebound.errors import KernelError
from corebound.topology.native_report import native_active_isa

pytestmark = pytest.mark.native

VARIANTS = ["generic", "avx2", "avx512", "avx512_bf16"]
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int32: 3}
SMALLEST_NORMAL = 2.0**-126


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native_active_isa()
    try:
        native_active_isa(request.param)
    except KernelError as error:
        lack = error.message.partition("cannot run here: ")[2]
        if not lack:
            raise
        pytest.skip(lack)
    assert shm_ops.library().corebound_comm_variant().decode() == request.param
    yield request.param
    native_active_isa(before)


def native_sum(parts: list[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    pointers = (ctypes.c_void_p * len(parts))(*[part.data_ptr() for part in parts])
    code = shm_ops.library().corebound_comm_sum(out.data_ptr(), pointers, len(parts), out.numel(), CODES[out.dtype])
    assert code == 0
    return out


def reference_sum(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return total.to(parts[0].dtype)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_every_length_equal_the_reference_bit_for_bit(variant: str, dtype: torch.dtype, num_parts: int) -> None:
    generator = torch.Generator().manual_seed(num_parts)
    for num_elements in [*range(67), 127, 128, 129, 1000]:
        parts = [torch.randn(num_elements, generator=generator).mul(3).to(dtype) for _ in range(num_parts)]
        assert torch.equal(native_sum(parts, torch.empty_like(parts[0])), reference_sum(parts))


@pytest.mark.parametrize("dtype", CODES)
def test_buffers_may_start_at_any_byte(variant: str, dtype: torch.dtype) -> None:
    num_elements = 131
    parts = [torch.arange(num_elements).add(rank).to(dtype) for rank in range(3)]
    raw = [torch.zeros(num_elements * dtype.itemsize + 1, dtype=torch.uint8) for _ in parts]
    for memory, part in zip(raw, parts, strict=True):
        memory[1:] = part.view(torch.uint8)
    pointers = (ctypes.c_void_p * 3)(*[memory.data_ptr() + 1 for memory in raw])
    library = shm_ops.library()
    assert library.corebound_comm_sum(raw[0].data_ptr() + 1, pointers, 3, num_elements, CODES[dtype]) == 0
    assert torch.equal(raw[0][1:].clone().view(dtype), reference_sum(parts))


def test_elements_beyond_the_end_are_left_alone(variant: str) -> None:
    for dtype in CODES:
        for num_elements in range(1, 70):
            out = torch.full((num_elements + 40,), 7, dtype=dtype)
            ones = torch.ones(num_elements, dtype=dtype)
            native_sum([ones, ones], out[:num_elements])
            assert out[:num_elements].eq(2).all()
            assert out[num_elements:].eq(7).all()


def test_the_result_may_replace_any_source_and_nothing_needs_alignment(variant: str) -> None:
    generator = torch.Generator().manual_seed(1)
    for position in range(3):
        parts = [torch.randn(501, generator=generator).bfloat16()[1:] for _ in range(3)]
        expected = reference_sum(parts)
        assert torch.equal(native_sum(parts, parts[position]), expected)


def test_int32_wraps(variant: str) -> None:
    parts = [torch.full((19,), 2**31 - 1, dtype=torch.int32), torch.full((19,), 2, dtype=torch.int32)]
    assert native_sum(parts, torch.empty_like(parts[0])).eq(-(2**31) + 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_pattern_passes_unchanged(variant: str, dtype: torch.dtype) -> None:
    whole = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    result = native_sum([whole, torch.zeros_like(whole)], torch.empty_like(whole))
    expected = reference_sum([whole, torch.zeros_like(whole)])
    nan = whole.isnan()
    assert result[nan].isnan().all()
    if variant == "avx512_bf16" and dtype == torch.bfloat16:  # documented: results below the normal range become 0
        tiny = whole.float().abs() < SMALLEST_NORMAL
        assert result[tiny].eq(0).all()
        nan = nan | tiny
    assert torch.equal(result[~nan].view(torch.int16), expected[~nan].view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even_over_the_whole_range(variant: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    exponents = torch.randint(-30, 16, (20_000,), generator=generator)
    parts = [(torch.randn(20_000, generator=generator) * 2.0**exponents).to(dtype) for _ in range(2)]
    parts[1] = parts[1] * 0.37
    assert torch.equal(native_sum(parts, torch.empty_like(parts[0])), reference_sum(parts))


def test_infinities_and_nan_survive(variant: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        big = torch.finfo(dtype).max
        first = torch.tensor([float("inf"), float("inf"), float("nan"), big, -big] * 9, dtype=dtype)
        second = torch.tensor([1.0, float("-inf"), 1.0, big, -big] * 9, dtype=dtype)
        result = native_sum([first, second], torch.empty_like(first)).float()[:5].tolist()
        assert result[0] == result[3] == float("inf")
        assert result[4] == float("-inf")
        assert result[1] != result[1]
        assert result[2] != result[2]
