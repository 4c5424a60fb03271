"""Products from panels against fp64, in every variant that runs here."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch

from corebound.kernels.panels import Activation, PanelFormat, PanelMatrix, scale_kind_for

pytestmark = pytest.mark.native

SHAPES = ((64, 32), (65, 33), (1, 2), (192, 640), (100, 517))
ROWS = (1, 2, 3, 5, 6, 7, 13, 16, 17, 33, 40)


def placed(matrix: PanelMatrix) -> PanelMatrix:
    matrix.place(torch.zeros(matrix.num_bytes, dtype=torch.uint8))
    return matrix


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().T


def assert_close(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, unit: float = 2.0**-23) -> None:
    """Within the error of fp32 sums of that many products, taken one after the other."""
    bound = unit * (x.shape[1] + 8) * (x.double().abs() @ weight.double().abs().T) + 1e-30
    error = (found.double() - exact(x, weight)).abs()
    assert bool((error <= bound).all()), float((error / bound).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_products_are_those_of_the_matrix(variant: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator).bfloat16()
    matrix = placed(PanelMatrix(*shape, PanelFormat()))
    half = shape[0] // 2
    matrix.put(half, weight[half:])
    matrix.put(0, weight[:half])
    for rows in ROWS:
        x = torch.randn((rows, shape[1]), generator=generator).bfloat16()
        assert_close(matrix.multiply(x), x, weight)
        assert_close(matrix.multiply(x, paced=True), x, weight)
    assert torch.equal(matrix.row(shape[0] - 1), weight[-1])


def test_rows_beyond_those_of_one_pass_are_as_if_alone(variant: str) -> None:
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn((330, 288), generator=generator).bfloat16()  # six panels: four together, then two
    matrix = placed(PanelMatrix(330, 288, PanelFormat()))
    matrix.put(0, weight)
    x = torch.randn((530, 288), generator=generator).bfloat16()  # 512 rows together, then 18
    found = matrix.multiply(x)
    assert_close(found, x, weight)
    if variant == "amx":  # elsewhere rows go by sixes, and a last few by themselves in another order
        assert torch.equal(found[440:], matrix.multiply(x[440:]))


def test_nothing_behind_the_last_panel_is_read(variant: str) -> None:
    inputs = 320
    matrix = PanelMatrix(64, inputs, PanelFormat())
    size = -(-matrix.num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    matrix.place(torch.frombuffer(memory, dtype=torch.uint8, count=matrix.num_bytes, offset=size - matrix.num_bytes))
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn((64, inputs), generator=generator).bfloat16()
    matrix.put(0, weight)
    library = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
    assert library.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    try:
        for rows in (1, 2, 4, 5, 16, 17, 33, 64, 65):
            x = torch.randn((rows, inputs), generator=generator).bfloat16()
            for paced in (False, True):
                assert_close(matrix.multiply(x, paced=paced), x, weight)
    finally:
        library.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 3)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("group", [None, 32, 128])
@pytest.mark.parametrize(("asymmetric", "scale_kind"), [(False, "bfloat16"), (True, "float16"), (True, "float32")])
def test_quantised_products_are_those_of_the_dequantised_matrix(
    variant: str, kind: str, group: int | None, asymmetric: bool, scale_kind: str
) -> None:
    generator = torch.Generator().manual_seed(2)
    levels = 256 if kind == "int8" else 16
    form = PanelFormat(kind=kind, group_size=group, asymmetric=asymmetric, scale_kind=scale_kind)  # type: ignore[arg-type]  # parametrised strings
    for outputs, inputs in SHAPES:
        matrix = placed(PanelMatrix(outputs, inputs, form))
        codes = torch.randint(0, levels, (outputs, inputs), generator=generator, dtype=torch.uint8)
        scales = torch.rand((outputs, matrix.num_groups), generator=generator) * 0.1 + 0.01
        scales = scales.to(getattr(torch, scale_kind)).float()
        zeros = torch.randint(0, levels, scales.shape, generator=generator).float()
        matrix.put_codes(0, codes, scales, zeros if asymmetric else None)
        size = matrix.struct.group_inputs
        middle = zeros if asymmetric else torch.full_like(zeros, levels // 2)
        steps = scales.repeat_interleave(size, 1)[:, :inputs]
        weight = (codes.double() - middle.repeat_interleave(size, 1)[:, :inputs]) * steps
        for rows, paced in ((1, False), (1, True), (4, False), (18, True), (33, False)):
            x = torch.randn((rows, inputs), generator=generator).bfloat16()
            if rows == 18 and variant == "amx":  # a row is what it is among fewer: whole numbers, in the same order
                assert torch.equal(matrix.multiply(x)[16:], matrix.multiply(x[16:]))
            if rows > 32 and variant == "amx":
                # AMX takes bf16 weights: each is rounded once.
                weight_error = 2.0**-8 * (x.double().abs() @ weight.abs().T)
                error = (matrix.multiply(x, paced=paced).double() - exact(x, weight)).abs()
                assert bool((error <= weight_error + 1e-6).all())
            else:
                # Inputs are rounded to 15 bits of the largest of their block, which is at most that of the row. The
                # zero point is taken off the sum, which can be larger than what remains.
                step = x.double().abs().amax(1, keepdim=True) / (127 * 128)
                large = codes.double() * steps + weight.abs()
                bound = 0.5001 * step * weight.abs().sum(1) + 2.0**-23 * 64 * (x.double().abs() @ large.T) + 1e-30
                error = (matrix.multiply(x, paced=paced).double() - exact(x, weight)).abs()
                assert bool((error <= bound).all()), float((error / bound).max())


@pytest.mark.parametrize("inner", [32, 33, 96, 170])
def test_gated_matrices_yield_finished_activations(variant: str, inner: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn((2 * inner, 64), generator=generator).bfloat16(), torch.randn(2 * inner).bfloat16()
    matrix = placed(PanelMatrix(2 * inner, 64, PanelFormat(), gated=True))
    matrix.put(0, weight[:inner])
    matrix.put(inner, weight[inner:])
    for rows in (1, 20):
        x = torch.randn((rows, 64), generator=generator).bfloat16()
        both = exact(x, weight) + bias.double()
        expected = torch.nn.functional.silu(both[:, :inner]) * both[:, inner:]
        found = matrix.multiply(x, bias, "silu_gated")
        assert torch.allclose(found.double(), expected, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf", "relu", "gelu_tanh_gated"])
def test_each_activation_is_its_own(variant: str, activation: Activation) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = 0.3 * torch.randn((96, 64), generator=generator).bfloat16()
    gated = activation.endswith("_gated")
    matrix = placed(PanelMatrix(96, 64, PanelFormat(), gated=gated))
    matrix.put(0, weight)
    # Some so far below zero that exact GELU and the tanh formula differ by more than a rounding.
    x = torch.randn((7, 64), generator=generator).bfloat16()
    sums = exact(x, weight)
    expected = {
        "gelu_tanh": torch.nn.functional.gelu(sums, approximate="tanh"),
        "gelu_erf": torch.nn.functional.gelu(sums),
        "relu": sums.relu(),
        "gelu_tanh_gated": torch.nn.functional.gelu(sums[:, :48], approximate="tanh") * sums[:, 48:],
    }
    found = matrix.multiply(x, None, activation).double()
    fits = {name for name, wanted in expected.items() if wanted.shape == found.shape}
    fits = {name for name in fits if torch.allclose(found, expected[name], rtol=2**-8, atol=1e-5)}
    assert fits == {activation}


def test_gelu_and_bias_follow_the_product(variant: str) -> None:
    generator = torch.Generator().manual_seed(4)
    weight, bias = torch.randn((100, 64), generator=generator).bfloat16(), torch.randn(100).bfloat16()
    matrix = placed(PanelMatrix(100, 64, PanelFormat()))
    matrix.put(0, weight)
    x = torch.randn((3, 64), generator=generator).bfloat16()
    expected = torch.nn.functional.gelu(exact(x, weight) + bias.double(), approximate="tanh")
    assert torch.allclose(matrix.multiply(x, bias, "gelu_tanh").double(), expected, rtol=2**-7, atol=2**-8)


def test_scales_are_stored_without_loss() -> None:
    assert scale_kind_for(torch.tensor([0.5, 1.0])) == "bfloat16"
    assert scale_kind_for(torch.tensor([1.0 + 2**-10])) == "float16"
    assert scale_kind_for(torch.tensor([1.0 + 2**-20])) == "float32"
