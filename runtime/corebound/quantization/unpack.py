"""From the packed tensors of AWQ and GPTQ checkpoints to quantized matrices.

Letters: N outputs, K inputs, G groups; P codes in a word of 32 bits, the first in its lowest bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from corebound.errors import ModelLoadError, ShardingError
from corebound.quantization.matrix import QuantizedMatrix
from corebound.quantization.packed import PackedFormat, group_range

# The output of which AWQ keeps the code in each place of a word, and the place of each output.
AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
_AWQ_PLACES = [AWQ_OUTPUTS.index(output) for output in range(len(AWQ_OUTPUTS))]

# Added to a whole word, 1 to each code: where a writer has subtracted 1 from a zero of 0, the borrow is undone too.
_ONE_TO_EACH_CODE = {4: 0x11111111, 8: 0x01010101}


def unpack(
    packed: PackedFormat, num_inputs: int, rows: range, columns: range, parts: Mapping[str, Tensor], *, where: str
) -> QuantizedMatrix:
    """Return the rows (outputs) and columns (inputs) of a matrix with `num_inputs` inputs.

    Shapes: `parts` are the rectangles of the stored tensors that `packed.rectangles` names, by the same names; `g_idx`
    may be missing or a vector.

    Raises: ModelLoadError, starting with `where`, for a scale that is not finite or groups that are none;
    ShardingError for a part of the inputs of a matrix whose groups are of inputs that are not neighbours.
    """
    scales = parts["scales"].float().t().contiguous()
    if not bool(scales.isfinite().all()):
        raise ModelLoadError(f"{where}: scales: expected finite numbers, found {_first_not_finite(scales):g}")
    codes = _codes(packed, rows, columns, parts["qweight"])
    order = None
    if "g_idx" in parts:
        order = _column_order(packed, num_inputs, columns, parts["g_idx"].flatten(), where)
    return QuantizedMatrix(
        bits=packed.scheme.bits,
        group_size=packed.scheme.group_size or max(1, len(columns)),
        codes=codes if order is None else codes[:, order],
        scales=scales,
        zeros=unpack_zeros(packed, rows, parts["qzeros"]),
        column_order=order,
    )


def unpack_zeros(packed: PackedFormat, rows: range, qzeros: Tensor) -> Tensor:
    """Return the zeros of the rows (outputs) of a matrix.

    Shapes: qzeros [G, W] int32, the words that hold the rows; result [N, G] uint8.
    """
    if packed.zero_offset:
        one = torch.tensor(_ONE_TO_EACH_CODE[packed.scheme.bits], dtype=torch.int32)
        qzeros = qzeros + one  # the sum of int32 tensors wraps around
    return _along_outputs(packed, rows, qzeros)


def fields(words: Tensor, bits: int) -> Tensor:
    """Return the codes in words, the lowest bits first.

    Shapes: words [..., W] int32; result [..., W * P] uint8.
    """
    # The machines this runs on, and the files, have the lowest byte first.
    codes = words.reshape(-1).view(torch.uint8).view(*words.shape[:-1], 4 * words.shape[-1])
    return codes if bits == 8 else torch.stack((codes & 0xF, codes >> 4), -1).flatten(-2)


def _codes(packed: PackedFormat, rows: range, columns: range, qweight: Tensor) -> Tensor:
    """Return codes [N, K] from the words, which lie along the inputs in GPTQ and along the outputs in AWQ."""
    if packed.method == "gptq":
        skipped = columns.start % packed.codes_per_word
        return fields(qweight.t(), packed.scheme.bits)[:, skipped : skipped + len(columns)].contiguous()
    return _along_outputs(packed, rows, qweight)


def _along_outputs(packed: PackedFormat, rows: range, words: Tensor) -> Tensor:
    """Return codes [rows, X] of words [X, W] that lie along the outputs."""
    bits, per_word = packed.scheme.bits, packed.codes_per_word
    places = _AWQ_PLACES if packed.method == "awq" else range(per_word)
    # Turned as words, of which there are fewer than codes.
    turned = words.t().contiguous()
    codes = torch.empty(turned.shape[0], per_word, turned.shape[1], dtype=torch.uint8)
    for output, place in enumerate(places):
        codes[:, output] = (turned >> (bits * place)).bitwise_and_((1 << bits) - 1)
    skipped = rows.start % per_word
    return codes.flatten(0, 1)[skipped : skipped + len(rows)]


def _column_order(packed: PackedFormat, num_inputs: int, columns: range, g_idx: Tensor, where: str) -> Tensor | None:
    """Return the columns sorted by their group, or None where they are already."""
    size = packed.scheme.group_size or num_inputs
    in_order = torch.arange(columns.start, columns.stop) // size
    groups = g_idx.long()
    if torch.equal(groups, in_order):
        return None
    if len(columns) < num_inputs:
        raise ShardingError(
            f"{where}: g_idx: the groups are in the order of activations (desc_act), so their inputs lie apart and "
            f"cannot be cut at {columns.start} and {columns.stop}",
            hint="use 1 rank, or a checkpoint that was made with desc_act false",
        )
    order = torch.argsort(groups, stable=True)
    if not torch.equal(groups[order], in_order):
        num_groups = len(group_range(packed, num_inputs, columns))
        raise ModelLoadError(f"{where}: g_idx: expected {num_groups} groups of {size} inputs, found others")
    return order


def _first_not_finite(values: Tensor) -> float:
    return float(values[~values.isfinite()][0])
