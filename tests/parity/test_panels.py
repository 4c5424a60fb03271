"""Products from panels against fp64, in every variant that runs here."""

from __future__ import annotations

import ctypes
import math
import mmap
from dataclasses import dataclass

import pytest
import torch

from corebound.kernels.panel_format import READINGS, OutputStruct, Reading
from corebound.kernels.panels import Activation, PanelFormat, PanelMatrix, library, scale_kind_for

FORMATS = (
    PanelFormat(),
    PanelFormat(kind="int8", group_size=256),
    PanelFormat(kind="int4", group_size=256, asymmetric=True),
)

pytestmark = pytest.mark.native

SHAPES = ((64, 32), (65, 33), (1, 2), (192, 640), (100, 517))
ROWS = (1, 2, 3, 5, 6, 7, 13, 16, 17, 33, 40, 67)
# Rows up to which codes are multiplied as bytes, where that has an end.
MOST_CODE_ROWS = {"amx": 32}
# kernels::max_whole_rows: for more rows, inputs up to so many times the root mean square of their row have one byte.
MOST_WHOLE_ROWS, SHORT_BLOCK_TOP = 16, 8


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


@dataclass(frozen=True)
class Weights:
    """A matrix of random weights: what it holds, `large` magnitudes before zero points are taken off."""

    matrix: PanelMatrix
    weight: torch.Tensor
    large: torch.Tensor

    def assert_product(self, variant: str, x: torch.Tensor, reading: Reading = "at_once") -> None:
        found = self.matrix.multiply(x, reading=reading)
        if self.matrix.form.kind == "bfloat16":
            assert_close(found, x, self.weight)
            return
        if x.shape[0] > MOST_CODE_ROWS.get(variant, x.shape[0]):
            # They are multiplied as bf16 weights: each is rounded once.
            bound = 2.0**-8 * (x.double().abs() @ self.weight.abs().T) + 1e-6
        else:
            # Inputs are rounded to 15 bits of the largest of their block, which is at most that of the row, or to 8.
            # The zero point is taken off the sum, which can be larger than what remains.
            top = x.double().abs().amax(1, keepdim=True)
            step = top / (127 * 128)
            if x.shape[0] > MOST_WHOLE_ROWS and variant != "amx":
                short = SHORT_BLOCK_TOP * x.double().pow(2).mean(1, keepdim=True).sqrt()
                step = torch.maximum(step, 1.00001 * torch.minimum(top, short) / 127)
            sums = 2.0**-23 * 64 * (x.double().abs() @ self.large.T)
            bound = 0.5001 * step * self.weight.abs().sum(1) + sums + 1e-30
        error = (found.double() - exact(x, self.weight)).abs()
        assert bool((error <= bound).all()), float((error / bound).max())


def random_weights(
    outputs: int, inputs: int, form: PanelFormat, generator: torch.Generator, memory: torch.Tensor | None = None
) -> Weights:
    """Return a matrix with random contents in `memory`, or in its own."""
    matrix = PanelMatrix(outputs, inputs, form)
    matrix.place(torch.zeros(matrix.num_bytes, dtype=torch.uint8) if memory is None else memory)
    if form.kind == "bfloat16":
        weight = torch.randn((outputs, inputs), generator=generator).bfloat16()
        matrix.put(0, weight)
        return Weights(matrix, weight, weight)
    levels = 256 if form.kind == "int8" else 16
    codes = torch.randint(0, levels, (outputs, inputs), generator=generator, dtype=torch.uint8)
    scales = torch.rand((outputs, matrix.num_groups), generator=generator) * 0.1 + 0.01
    scales = scales.to(getattr(torch, form.scale_kind)).float()
    zeros = torch.randint(0, levels, scales.shape, generator=generator).float()
    matrix.put_codes(0, codes, scales, zeros if form.asymmetric else None)
    size = matrix.struct.group_inputs
    middle = zeros if form.asymmetric else torch.full_like(zeros, levels // 2)
    steps = scales.repeat_interleave(size, 1)[:, :inputs]
    weight = (codes.double() - middle.repeat_interleave(size, 1)[:, :inputs]) * steps
    return Weights(matrix, weight, codes.double() * steps + weight.abs())


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
        for reading in READINGS[1:]:
            assert_close(matrix.multiply(x, reading=reading), x, weight)
    assert torch.equal(matrix.row(shape[0] - 1), weight[-1])


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.kind)
def test_rows_beyond_those_of_one_pass_are_as_if_alone(variant: str, form: PanelFormat) -> None:
    generator = torch.Generator().manual_seed(9)
    weights = random_weights(330, 544, form, generator)  # six panels: four together, then two; several pieces of inputs
    multiply = weights.matrix.multiply
    # 65 at once; 256 rows of weights together, then one; 512 of codes, then 18.
    for rows, alone in ((65, 30), (257, 200), (530, 440)):
        x = torch.randn((rows, 544), generator=generator).bfloat16()
        weights.assert_product(variant, x)
        assert all(torch.equal(multiply(x, reading=reading), multiply(x)) for reading in READINGS)
        if variant == "amx":  # elsewhere how many go together differs, and with it the order of sums
            assert torch.equal(multiply(x)[alone:], multiply(x[alone:]))


class BestStruct(ctypes.Structure):
    """kernels::Best."""

    _fields_ = [("value", ctypes.c_float), ("word", ctypes.c_int32)]


def logits_with_best(
    matrix: PanelMatrix, x: torch.Tensor, reading: Reading = "at_once"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits of rows, and of each row the largest and its word as the kernel found them."""
    padded = torch.zeros((len(x), matrix.padded_inputs), dtype=torch.bfloat16)
    padded[:, : matrix.inputs] = x
    logits = torch.empty((len(x), matrix.outputs))
    best = (BestStruct * len(x))(*[BestStruct(-torch.inf, 2**31 - 1)] * len(x))
    out = OutputStruct(logits=logits.data_ptr(), stride=matrix.outputs, best=ctypes.addressof(best))
    library().corebound_panel_multiply(
        ctypes.byref(matrix.struct),
        padded.data_ptr(),
        len(x),
        matrix.padded_inputs,
        ctypes.byref(out),
        READINGS.index(reading),
    )
    return logits, torch.tensor([one.value for one in best]), torch.tensor([one.word for one in best])


@pytest.mark.parametrize("special", [[], [math.nan], [math.inf], [-math.inf], [math.inf, math.nan, math.nan]], ids=str)
def test_the_best_words_are_those_of_torch(variant: str, special: list[float]) -> None:
    generator = torch.Generator().manual_seed(5)
    for outputs in (1, 63, 64, 65, 200):
        # Few different values, so that many words are equal; the special ones are at places of their own.
        weight = torch.randint(-1, 2, (outputs, 4), generator=generator).bfloat16()
        for value in special:
            weight[int(torch.randint(0, outputs, (), generator=generator)), 0] = value
        matrix = placed(PanelMatrix(outputs, 4, PanelFormat()))
        matrix.put(0, weight)
        for rows in range(1, 18):
            x = torch.randint(-1, 2, (rows, 4), generator=generator).bfloat16()
            x[:, 0] = 1
            for reading in READINGS:
                logits, values, words = logits_with_best(matrix, x, reading)
                expected = logits.max(dim=1)
                assert torch.equal(values.nan_to_num(7e9), expected.values.nan_to_num(7e9))
                assert torch.equal(words, expected.indices)


def test_rows_of_the_smallest_logits_alone_have_the_first_word(variant: str) -> None:
    matrix = placed(PanelMatrix(130, 2, PanelFormat()))
    matrix.put(0, torch.full((130, 2), -math.inf, dtype=torch.bfloat16))
    _, values, words = logits_with_best(matrix, torch.ones((3, 2), dtype=torch.bfloat16))
    assert values.tolist() == [-math.inf] * 3 and words.tolist() == [0, 0, 0]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.kind)
def test_nothing_behind_the_last_panel_is_read(variant: str, form: PanelFormat) -> None:
    num_bytes = form.matrix_bytes(64, 320)
    size = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    panels = torch.frombuffer(memory, dtype=torch.uint8, count=num_bytes, offset=size - num_bytes)
    generator = torch.Generator().manual_seed(4)
    weights = random_weights(64, 320, form, generator, panels)
    library = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
    assert library.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    try:
        for rows in (1, 2, 3, 4, 5, 16, 17, 32, 33, 64, 65):
            x = torch.randn((rows, 320), generator=generator).bfloat16()
            for reading in READINGS:
                weights.assert_product(variant, x, reading)
    finally:
        library.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 3)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("group", [None, 32, 64, 96, 128, 256, 384])
@pytest.mark.parametrize(
    ("asymmetric", "scale_kind"),
    [(False, "bfloat16"), (False, "float16"), (False, "float32"), (True, "float16"), (True, "float32")],
)
def test_quantised_products_are_those_of_the_dequantised_matrix(
    variant: str, kind: str, group: int | None, asymmetric: bool, scale_kind: str
) -> None:
    generator = torch.Generator().manual_seed(2)
    form = PanelFormat(kind=kind, group_size=group, asymmetric=asymmetric, scale_kind=scale_kind)  # type: ignore[arg-type]  # parametrised strings
    for outputs, inputs in SHAPES:
        weights = random_weights(outputs, inputs, form, generator)
        for rows, number in ((1, 0), (1, 1), (1, 2), (2, 1), (4, 0), (4, 2), (18, 1), (33, 0), (65, 0)):
            x = torch.randn((rows, inputs), generator=generator).bfloat16()
            weights.assert_product(variant, x, READINGS[number])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("group", [None, 64, 128])
@pytest.mark.parametrize("rows", [17, 65, 71, 131])
def test_many_rows_lose_little_of_ordinary_inputs_and_of_outliers(
    variant: str, kind: str, group: int | None, rows: int
) -> None:
    generator = torch.Generator().manual_seed(8)
    weights = random_weights(130, 1280, PanelFormat(kind=kind, group_size=group), generator)  # type: ignore[arg-type]  # parametrised strings
    x = torch.randn((rows, 1280), generator=generator)
    x[::2, 700] *= 500  # a dimension of outliers, in every other row: with one byte, its block would be zeros
    x[-2] *= 1e-24  # the squares of these are zeros, and those of the last row infinite
    x[-1] *= 1e19
    x = x.bfloat16()
    found, few = weights.matrix.multiply(x), weights.matrix.multiply(x[:MOST_WHOLE_ROWS])
    weights.assert_product(variant, x)
    if variant == "amx":  # it rounds the weights, and no input
        return
    error = found.double() - exact(x, weights.weight)
    scale = x.double().pow(2).mean(1).sqrt()[:, None] * weights.weight.pow(2).sum(1).sqrt()
    assert bool((error.pow(2).mean(1).sqrt() <= SHORT_BLOCK_TOP / (127 * math.sqrt(12)) * scale.amax(1)).all())
    # Where nothing stands out, that is a third of the bound and more than what two bytes lose: one was left out.
    ordinary = error[1::2] / scale[1::2]
    assert 1e-3 < float(ordinary.pow(2).mean().sqrt()) < 0.01
    assert not torch.equal(found[:MOST_WHOLE_ROWS], few)


@pytest.mark.parametrize("group", [None, 64, 128])
@pytest.mark.parametrize(("top", "is_fine"), [(7.9, False), (8.1, True)])
def test_a_block_keeps_both_bytes_from_8_times_the_root_mean_square_on(
    variant: str, group: int | None, top: float, is_fine: bool
) -> None:
    generator = torch.Generator().manual_seed(12)
    weights = random_weights(130, 1280, PanelFormat(kind="int8", group_size=group), generator)
    rest = torch.randn((66, 1280), generator=generator)
    rest[:, 700] = 0
    # With one input of that many times the root mean square, which it is a part of.
    rest *= math.sqrt((1280 - top**2) / 1280) / rest.pow(2).mean(1, keepdim=True).sqrt()
    rest[:, 700] = top
    size = min(group or 128, 128)
    inside = torch.arange(1280) // size == 700 // size
    x = rest.bfloat16()
    weights.assert_product(variant, x)
    if variant == "amx":  # it rounds the weights, and no input
        return
    # What the whole row is off by, less what it is without that block, is what the block is off by.
    alone, without = weights.matrix.multiply(x).double(), weights.matrix.multiply(x * ~inside).double()
    of_block = alone - without - exact(x * inside, weights.weight)
    reach = top / (127 * 128) * weights.weight[:, inside].pow(2).sum(1).sqrt() / math.sqrt(12)
    error = of_block.pow(2).mean(0).sqrt() / reach  # 1 with both bytes, 128 with one
    assert bool((error < 40).all()) if is_fine else bool((error > 40).all()), error


def of_codes(codes: torch.Tensor, form: PanelFormat, scale: float) -> PanelMatrix:
    """A matrix of these codes with one scale."""
    matrix = placed(PanelMatrix(*codes.shape, form))
    matrix.put_codes(0, codes, torch.full((codes.shape[0], matrix.num_groups), scale), None)
    return matrix


@pytest.mark.parametrize(
    "form", [PanelFormat(kind=kind, group_size=size) for kind in ("int8", "int4") for size in (None, 128)]
)
def test_sums_of_the_largest_codes_and_inputs_are_exact(variant: str, form: PanelFormat) -> None:
    top = 255 if form.kind == "int8" else 15
    inputs = 768
    alternating = torch.arange(inputs) % 2
    rows = torch.stack([torch.ones(inputs), -torch.ones(inputs), 1.0 - 2.0 * alternating]).bfloat16()
    codes = torch.stack([torch.zeros(inputs), torch.full((inputs,), top), top * alternating, top * (1 - alternating)])
    matrix = of_codes(codes.to(torch.uint8), form, 1.0)
    expected = rows.double() @ (codes.double() - (top + 1) // 2).T
    for row, values in zip(rows, expected, strict=True):
        for reading in READINGS:
            found = matrix.multiply(row[None], reading=reading)[0].double()
            assert torch.allclose(found, values, rtol=1e-6, atol=1e-2)  # a block's scale is rounded


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("group", [None, 128])
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_one_input_shows(variant: str, kind: str, group: int | None, special: float) -> None:
    form = PanelFormat(kind=kind, group_size=group)  # type: ignore[arg-type]  # parametrised strings
    matrix = of_codes(torch.full((70, 672), 3, dtype=torch.uint8), form, 0.5)
    for place in (0, 200, 300, 550, 671):  # five blocks of 128 and a short one: two halves, an odd one, the rest
        x = torch.ones((2, 672), dtype=torch.bfloat16)
        x[0, place] = special
        for rows in (1, 2):
            for reading in READINGS:
                found = matrix.multiply(x[:rows], reading=reading)
                assert not bool(found[0].isfinite().any())
                assert rows == 1 or bool(found[1].isfinite().all())


def test_large_inputs_do_not_overflow_before_they_are_scaled(variant: str) -> None:
    matrix = of_codes(torch.full((64, 256), 255, dtype=torch.uint8), PanelFormat(kind="int8"), 2.0**-14)
    for magnitude in (1.0, 1e20, 1e28, 1e35):
        x = torch.full((1, 256), magnitude).bfloat16()
        expected = 256 * 127 * 2.0**-14 * x[0, 0].double()
        assert torch.allclose(matrix.multiply(x).double(), expected, rtol=1e-4)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.kind)
@pytest.mark.parametrize("activation", ["none", "gelu_tanh", "relu"])
def test_results_that_go_past_the_caches_are_the_same(variant: str, form: PanelFormat, activation: Activation) -> None:
    generator = torch.Generator().manual_seed(11)
    multiply = random_weights(200, 544, form, generator).matrix.multiply
    bias = torch.randn(200, generator=generator).bfloat16()
    for rows in range(1, 7):
        x = torch.randn((rows, 544), generator=generator).bfloat16() / 16
        plain = multiply(x, bias, activation)
        assert all(torch.equal(multiply(x, bias, activation, reading=reading), plain) for reading in READINGS)


@pytest.mark.parametrize("variant", ["amx"], indirect=True)  # elsewhere one order of sums is not promised
@pytest.mark.parametrize("form", FORMATS[1:], ids=lambda form: form.kind)
def test_up_to_32_rows_of_a_quantised_product_are_those_of_two(variant: str, form: PanelFormat) -> None:
    generator = torch.Generator().manual_seed(6)
    multiply = random_weights(100, 517, form, generator).matrix.multiply
    for rows in (3, 4, 16, 17, 18, 31, 32):
        x = torch.randn((rows, 517), generator=generator).bfloat16()
        found = multiply(x)
        for first in (*range(0, rows - 2, 2), rows - 2):
            assert torch.equal(found[first : first + 2], multiply(x[first : first + 2]))


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
