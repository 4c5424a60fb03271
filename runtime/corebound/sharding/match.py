"""Matches the tensors of a checkpoint with the parameters that a family's table expects, plain or packed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from corebound.config.suggest import nearest
from corebound.errors import ModelLoadError
from corebound.quantization.packed import PackedFormat
from corebound.sharding.checkpoint import Checkpoint, TensorEntry, is_all_zero
from corebound.sharding.expected import Expected, expected_tensors, packed_fields
from corebound.sharding.families import TABLES
from corebound.sharding.geometry import Geometry
from corebound.sharding.plan import model_parameters
from corebound.sharding.table import FamilyTable

_MAX_LISTED = 8


def match_parameters(
    geometry: Geometry, checkpoint: Checkpoint, packed: PackedFormat | None = None
) -> dict[str, TensorEntry]:
    """Return for every parameter of the model the tensor that holds it, by the parameter's name without prefix.

    With a `packed` format the checkpoint may hold, in place of a matrix `X.weight`, the tensors `X.qweight`,
    `X.qzeros`, `X.scales` and `X.g_idx` that stand for it; they are returned by these names.

    Raises: ModelLoadError that lists the tensors no rule knows, the parameters no file has, the first tensor of a
    wrong shape or type, or matrices of one product of which some are packed and some are not.
    """
    table = TABLES[geometry.family]
    entries = {name.removeprefix(table.prefix): entry for name, entry in checkpoint.tensors.items()}
    expected: dict[str, Expected] = {}
    for parameter in model_parameters(geometry):
        expected |= expected_tensors(parameter, entries, packed)
    entries = {name: entry for name, entry in entries.items() if not _is_empty_bias(name, entry, expected)}
    _check_names(geometry, table, expected, entries)
    for name, wanted in expected.items():
        if name in entries:
            _check_tensor(wanted, entries[name])
    found = {name: entries[name] for name in expected if name in entries}
    if packed is not None:
        packed_fields(model_parameters(geometry), packed, found)
    return found


def _is_empty_bias(name: str, entry: TensorEntry, expected: Mapping[str, Expected]) -> bool:
    """Return whether a tensor is a bias of zeros that a packing tool gave to a matrix of a model without biases."""
    if name in expected or not name.endswith(".bias"):
        return False
    return f"{name.removesuffix('.bias')}.qweight" in expected and is_all_zero(entry)


def _check_names(
    geometry: Geometry, table: FamilyTable, expected: Mapping[str, Expected], entries: Mapping[str, TensorEntry]
) -> None:
    unknown = sorted(name for name in set(entries) - set(expected) if not table.is_ignored(name))
    missing = sorted(name for name, wanted in expected.items() if name not in entries and not wanted.optional)
    if not unknown and not missing:
        return
    problems, hint = [], None
    if unknown:
        problems.append(f"{len(unknown)} parameters that family {geometry.family!r} does not know: {_listed(unknown)}")
        hint = _hint(unknown, missing or list(expected))
    if missing:
        problems.append(f"{len(missing)} parameters are missing: {_listed(missing)}")
    raise ModelLoadError(f"{geometry.name}: weights do not fit config.json: {'; '.join(problems)}", hint=hint)


def _hint(unknown: list[str], known: list[str]) -> str:
    if any(name.endswith(".qweight") for name in unknown):
        return "the matrices are quantized, and config.json has no quantization_config that says how"
    close = nearest(unknown[0], known)
    hint = f"did you mean `{close}`? " if close else ""
    return hint + "architectures and the sizes in config.json must be those of the weights"


def _check_tensor(wanted: Expected, entry: TensorEntry) -> None:
    if entry.shape != wanted.shape:
        raise ModelLoadError(
            f"{entry.path}: tensor {entry.name!r}: expected shape {list(wanted.shape)} ({wanted.meaning}) from "
            f"config.json, found {list(entry.shape)}"
        )
    if entry.dtype not in wanted.dtypes:
        raise ModelLoadError(
            f"{entry.path}: tensor {entry.name!r}: expected dtype {', '.join(wanted.dtypes)}, found {entry.dtype}",
            hint=None if wanted.packed else "use the unquantised checkpoint of this model",
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + rest
