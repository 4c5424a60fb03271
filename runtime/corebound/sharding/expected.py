"""What a checkpoint must hold for each parameter: its own tensor, or the packed ones that stand for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from corebound.errors import ModelLoadError
from corebound.quantization.packed import PackedFormat, packed_tensors
from corebound.sharding.checkpoint import WEIGHT_DTYPES, TensorEntry
from corebound.sharding.plan import Parameter

_WEIGHT = ".weight"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One tensor that a checkpoint must, or may, hold: its shape and the reason for it, and its type."""

    shape: tuple[int, ...]
    meaning: str
    dtypes: tuple[str, ...]
    optional: bool = False
    packed: bool = False


def expected_tensors(
    parameter: Parameter, entries: Mapping[str, TensorEntry], packed: PackedFormat | None
) -> dict[str, Expected]:
    """Return the tensors for a parameter by name: packed ones where `entries` has them and the format allows it.

    Raises: ModelLoadError for a packed matrix that the configuration says is plain, or of a size that cannot be packed.
    """
    axes = " x ".join(parameter.rule.axes)
    plain = {parameter.name: Expected(shape=parameter.shape, meaning=axes, dtypes=WEIGHT_DTYPES)}
    if packed is None or not is_packable(parameter):
        return plain
    entry = entries.get(packed_name(parameter, "qweight"))
    if entry is None:
        return plain
    excluded = [name for name in packed.plain_modules if f".{name}." in f".{entry.name}"]
    if excluded:
        raise ModelLoadError(
            f"{entry.path}: tensor {entry.name!r}: quantized, though modules_to_not_convert names {excluded[0]!r}"
        )
    try:
        tensors = packed_tensors(packed, *parameter.shape)
    except ModelLoadError as error:
        raise ModelLoadError(f"{entry.path}: tensor {entry.name!r}: {error.message}") from error
    meaning = f"{packed.name} of {axes}"
    return {
        packed_name(parameter, suffix): Expected(
            shape=tensor.shape, meaning=meaning, dtypes=tensor.dtypes, optional=tensor.optional, packed=True
        )
        for suffix, tensor in tensors.items()
    }


def is_packable(parameter: Parameter) -> bool:
    """Return whether a parameter is a matrix of a product; rows of embeddings are looked up."""
    return len(parameter.shape) == 2 and not parameter.rule.field.endswith("embedding_weight")


def packed_name(parameter: Parameter, suffix: str) -> str:
    """Return the name of one of the packed tensors that stand for a parameter."""
    return f"{parameter.name.removesuffix(_WEIGHT)}.{suffix}"


def packed_fields(
    parameters: Iterable[Parameter], packed: PackedFormat, entries: Mapping[str, TensorEntry]
) -> dict[str, tuple[Parameter, ...]]:
    """Return the parameters of each field of the decoder whose matrices are packed.

    Raises: ModelLoadError for a field of which some matrices are packed and some are not.
    """
    members: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        members.setdefault(parameter.field, []).append(parameter)
    found: dict[str, tuple[Parameter, ...]] = {}
    for field, parts in members.items():
        plain = [part.name for part in parts if part.name in entries]
        if not plain:
            found[field] = tuple(parts)
        elif len(plain) < len(parts):
            other = next(part.name for part in parts if part.name not in entries)
            raise ModelLoadError(
                f"{entries[plain[0]].path}: tensor {plain[0]!r}: expected {packed.name} as for {other!r}, because both "
                "become parts of one matrix, found a plain one",
                hint="use a checkpoint in which q, k and v, or gate and up, are packed alike",
            )
    return found
