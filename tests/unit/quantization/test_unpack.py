"""AWQ and GPTQ tensors against a packer that is written from the description of the formats."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corebound.errors import ModelLoadError, ShardingError
from corebound.quantization import Scheme
from corebound.quantization.matrix import QuantizedMatrix
from corebound.quantization.packed import PackedFormat, packed_tensors, rectangles
from corebound.quantization.reference import dequantize
from corebound.quantization.unpack import unpack
from fixtures.packed_weights import PlainWeights, awq_tensors, gptq_tensors, random_weights

WHERE = "m.safetensors: h.0.mlp"


def awq(group_size: int | None = 32) -> PackedFormat:
    return PackedFormat(method="awq", scheme=Scheme(4, group_size, False))


def gptq(bits: int = 4, group_size: int | None = 32, version: int = 1, **fields: bool) -> PackedFormat:
    scheme = Scheme(bits, group_size, False)  # type: ignore[arg-type]  # parametrised numbers
    return PackedFormat(method="gptq", scheme=scheme, zero_offset=1 if version == 1 else 0, **fields)


def tensors_of(packed: PackedFormat, weights: PlainWeights) -> dict[str, torch.Tensor]:
    if packed.method == "awq":
        return awq_tensors(weights)
    return gptq_tensors(weights, bits=packed.scheme.bits, version=2 - packed.zero_offset)


def read(
    packed: PackedFormat, tensors: Mapping[str, torch.Tensor], num_inputs: int, rows: range, columns: range
) -> QuantizedMatrix:
    """Read what a loader would: the rectangles alone."""
    parts = {}
    for name, (first, second) in rectangles(packed, num_inputs, rows, columns).items():
        if name in tensors:
            table = tensors[name].unsqueeze(1) if tensors[name].dim() == 1 else tensors[name]
            parts[name] = table[first.start : first.stop, second.start : second.stop].clone()
            assert parts[name].shape == (len(first), len(second)), "the rectangle is inside the tensor"
    return unpack(packed, num_inputs, rows, columns, parts, where=WHERE)


FORMATS = [
    *(awq(size) for size in (None, 32, 64, 128)),
    *(gptq(bits, size, version) for bits in (4, 8) for size in (None, 32, 128) for version in (1, 2)),
]


def name_of(packed: PackedFormat) -> str:
    return f"{packed.method}-{packed.scheme.name}-{packed.zero_offset}"


@pytest.mark.parametrize("packed", FORMATS, ids=name_of)
def test_a_whole_matrix_has_the_values_that_were_packed(packed: PackedFormat) -> None:
    weights = random_weights(24, 256, bits=packed.scheme.bits, group_size=packed.scheme.group_size)
    tensors = tensors_of(packed, weights)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in packed_tensors(packed, 24, 256).items()
    }
    matrix = read(packed, tensors, 256, range(24), range(256))
    assert torch.equal(matrix.codes.long(), weights.codes)
    assert torch.equal(matrix.zeros.long(), weights.zeros)
    assert torch.equal(dequantize(matrix, torch.float64), weights.values())
    assert matrix.has_scales_of(torch.float16)


@settings(max_examples=150, deadline=None)
@given(
    packed=st.sampled_from(FORMATS),
    ends=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    groups=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 1 << 20),
)
def test_a_part_has_the_values_of_that_part(
    packed: PackedFormat, ends: tuple[int, int], groups: tuple[int, int], seed: int
) -> None:
    num_inputs = 3 * 128
    weights = random_weights(40, num_inputs, bits=packed.scheme.bits, group_size=packed.scheme.group_size, seed=seed)
    rows = range(min(ends), max(ends))
    columns = range(128 * min(groups), 128 * max(groups))
    if packed.scheme.group_size is None and len(columns):
        columns = range(columns.start + 1, columns.stop - 3)  # one scale for all: any cut will do
    if not len(rows) or not len(columns):
        return
    matrix = read(packed, tensors_of(packed, weights), num_inputs, rows, columns)
    expected = weights.values()[rows.start : rows.stop, columns.start : columns.stop]
    assert torch.equal(dequantize(matrix, torch.float64), expected)


@pytest.mark.parametrize("packed", [awq(64), gptq(4, 64)], ids=name_of)
def test_a_cut_through_a_group_names_the_inputs(packed: PackedFormat) -> None:
    with pytest.raises(ShardingError, match="inputs 64 to 160 of 256 cut through a group of 64"):
        rectangles(packed, 256, range(8), range(64, 160))


def test_a_short_last_group_is_read() -> None:
    packed = gptq(4, 32)
    weights = random_weights(8, 40, bits=4, group_size=32)
    tensors = tensors_of(packed, weights)
    assert torch.equal(dequantize(read(packed, tensors, 40, range(8), range(40)), torch.float64), weights.values())
    assert read(packed, tensors, 40, range(8), range(32, 40)).shape == (8, 8)


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_in_the_order_of_activations_become_an_order_of_columns(bits: int) -> None:
    packed = gptq(bits, 32, activation_order=True)
    weights = random_weights(16, 128, bits=bits, group_size=32, ordered=False)
    matrix = read(packed, tensors_of(packed, weights), 128, range(8, 16), range(128))
    assert matrix.column_order is not None
    assert bool((weights.groups[matrix.column_order].diff() >= 0).all()), "a kernel sees whole groups"
    assert torch.equal(dequantize(matrix, torch.float64), weights.values()[8:])


def test_groups_in_the_order_of_activations_cannot_be_cut() -> None:
    packed = gptq(activation_order=True)
    tensors = tensors_of(packed, random_weights(8, 128, bits=4, group_size=32, ordered=False))
    with pytest.raises(ShardingError, match=rf"{WHERE}: g_idx: .* \(desc_act\).* cut at 64 and 128") as caught:
        read(packed, tensors, 128, range(8), range(64, 128))
    assert caught.value.hint == "use 1 rank, or a checkpoint that was made with desc_act false"


def test_neighbouring_groups_may_be_cut_even_where_activations_gave_the_order() -> None:
    packed = gptq(activation_order=True)
    weights = random_weights(8, 128, bits=4, group_size=32)
    matrix = read(packed, tensors_of(packed, weights), 128, range(8), range(64, 128))
    assert matrix.column_order is None
    assert torch.equal(dequantize(matrix, torch.float64), weights.values()[:, 64:])


@pytest.mark.parametrize("change", [0, 3, 4, -1])
def test_groups_of_uneven_size_are_refused(change: int) -> None:
    packed = gptq()
    tensors = tensors_of(packed, random_weights(8, 128, bits=4, group_size=32))
    tensors["g_idx"][127 if change != 3 else 0] = change
    with pytest.raises(ModelLoadError, match=f"{WHERE}: g_idx: expected 4 groups of 32 inputs, found others"):
        read(packed, tensors, 128, range(8), range(128))


def test_old_files_without_g_idx_are_read() -> None:
    packed = gptq()
    weights = random_weights(8, 128, bits=4, group_size=32)
    tensors = tensors_of(packed, weights)
    del tensors["g_idx"]
    assert torch.equal(dequantize(read(packed, tensors, 128, range(8), range(128)), torch.float64), weights.values())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", [0, 1, -1])
def test_the_ends_of_the_zeros_survive_the_first_format(bits: int, zero: int) -> None:
    # A zero of 0 is stored as a word less 1 in every place, which borrows from the next one.
    packed, weights = gptq(bits), random_weights(8, 32, bits=bits, group_size=32)
    weights.zeros[3] = zero % (1 << bits)
    weights.zeros[7] = zero % (1 << bits)
    matrix = read(packed, tensors_of(packed, weights), 32, range(8), range(32))
    assert torch.equal(matrix.zeros.long(), weights.zeros)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_scale_that_is_not_finite_is_refused(value: str) -> None:
    tensors = awq_tensors(random_weights(8, 64, bits=4, group_size=32))
    tensors["scales"][1, 5] = float(value)
    with pytest.raises(ModelLoadError, match=f"{WHERE}: scales: expected finite numbers, found {value}"):
        read(awq(), tensors, 64, range(8), range(64))


@pytest.mark.parametrize(
    ("packed", "num_outputs", "num_inputs", "problem"),
    [
        (awq(), 12, 64, "expected outputs in multiples of 8, as awq packs, found 12"),
        (gptq(4), 8, 65, "expected inputs in multiples of 8, as gptq packs, found 65"),
        (gptq(8), 6, 64, "expected outputs in multiples of 4, as gptq packs, found 6"),
    ],
)
def test_sizes_that_do_not_fill_words_are_refused(
    packed: PackedFormat, num_outputs: int, num_inputs: int, problem: str
) -> None:
    with pytest.raises(ModelLoadError, match=problem):
        packed_tensors(packed, num_outputs, num_inputs)
