"""The packed formats of AWQ and GPTQ checkpoints: the tensors of a matrix, and what of them to read. No torch.

Letters: N outputs, K inputs, G groups, P codes in a word of 32 bits (32 / bits).

Source: Frantar et al., GPTQ (2022), and Lin et al., AWQ (2023), for the methods; the formats are those that AutoGPTQ,
GPTQModel and AutoAWQ (`gemm`) write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from corebound.errors import ModelLoadError, ShardingError
from corebound.quantization.scheme import Scheme

WORD_BITS = 32
_WORDS = ("I32",)
_FLOATS = ("F16", "BF16", "F32")

# The rows and the columns of a stored tensor; a vector has one column.
Rectangle = tuple[range, range]


@dataclass(frozen=True, kw_only=True)
class PackedFormat:
    """How a checkpoint stores its quantized matrices.

    `zero_offset` is what the stored zeros lack: 1 in the first format of GPTQ, 0 in its second and in AWQ.
    `activation_order` says that the groups of a GPTQ matrix may be of inputs that are not neighbours. `plain_modules`
    are parts of the names of matrices that are not quantized, as the configuration lists them.
    """

    method: Literal["awq", "gptq"]
    scheme: Scheme
    zero_offset: Literal[0, 1] = 0
    activation_order: bool = False
    plain_modules: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the method and the scheme, such as `gptq int4:g128:sym`."""
        return f"{self.method} {self.scheme.name}"

    @property
    def codes_per_word(self) -> int:
        """Return how many codes a word of 32 bits holds."""
        return WORD_BITS // self.scheme.bits


@dataclass(frozen=True)
class PackedTensor:
    """One tensor of a packed matrix: its shape, the types it may have, and whether it may be missing."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    optional: bool = False


def packed_tensors(packed: PackedFormat, num_outputs: int, num_inputs: int) -> dict[str, PackedTensor]:
    """Return the tensors that stand for a matrix [N, K], by the last part of their names.

    Raises: ModelLoadError for sizes that the format cannot hold.
    """
    per_word, num_groups = packed.codes_per_word, packed.scheme.num_groups(num_inputs)
    cut = {"outputs": num_outputs} if packed.method == "awq" else {"outputs": num_outputs, "inputs": num_inputs}
    for noun, size in cut.items():
        if size % per_word:
            raise ModelLoadError(f"expected {noun} in multiples of {per_word}, as {packed.method} packs, found {size}")
    tensors = {
        "qweight": PackedTensor((num_inputs, num_outputs // per_word), _WORDS),
        "qzeros": PackedTensor((num_groups, num_outputs // per_word), _WORDS),
        "scales": PackedTensor((num_groups, num_outputs), _FLOATS),
    }
    if packed.method == "gptq":
        tensors["qweight"] = PackedTensor((num_inputs // per_word, num_outputs), _WORDS)
        tensors["g_idx"] = PackedTensor((num_inputs,), _WORDS, optional=not packed.activation_order)
    return tensors


def rectangles(packed: PackedFormat, num_inputs: int, rows: range, columns: range) -> dict[str, Rectangle]:
    """Return which part of each stored tensor holds the rows (outputs) and columns (inputs) of a matrix.

    Words that lie across an end are read whole; `unpack` cuts them.

    Raises: ShardingError for columns that cut through a group.
    """
    check_columns(packed, num_inputs, columns)
    groups = group_range(packed, num_inputs, columns)
    row_words = words(rows, packed.codes_per_word)
    parts = {"qweight": (columns, row_words), "qzeros": (groups, row_words), "scales": (groups, rows)}
    if packed.method == "gptq":
        parts["qweight"] = (words(columns, packed.codes_per_word), rows)
        parts["g_idx"] = (columns, range(1))
    return parts


def group_range(packed: PackedFormat, num_inputs: int, columns: range) -> range:
    """Return the groups that the columns are in."""
    size = packed.scheme.group_size or num_inputs
    return range(columns.start // size, -(-columns.stop // size))


def words(codes: range, codes_per_word: int) -> range:
    """Return the words that hold a range of codes."""
    return range(codes.start // codes_per_word, -(-codes.stop // codes_per_word))


def check_columns(packed: PackedFormat, num_inputs: int, columns: range) -> None:
    """Check that a part of the inputs consists of whole groups.

    Raises: ShardingError.
    """
    if not whole_groups(packed.scheme.group_size, num_inputs, columns):
        raise ShardingError(
            f"inputs {columns.start} to {columns.stop} of {num_inputs} cut through a group of "
            f"{packed.scheme.group_size}, whose scale belongs to one rank"
        )


def whole_groups(group_size: int | None, num_inputs: int, columns: range) -> bool:
    """Return whether a part of the inputs consists of whole groups."""
    if group_size is None:
        return True
    return columns.start % group_size == 0 and (columns.stop % group_size == 0 or columns.stop == num_inputs)
