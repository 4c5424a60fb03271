"""Matches the tensors of a checkpoint with the parameters that a family's table expects."""

from __future__ import annotations

from collections.abc import Iterable

from corebound.config.suggest import nearest
from corebound.errors import ModelLoadError
from corebound.sharding.checkpoint import WEIGHT_DTYPES, Checkpoint, TensorEntry
from corebound.sharding.families import TABLES
from corebound.sharding.geometry import Geometry
from corebound.sharding.plan import Parameter, model_parameters
from corebound.sharding.table import FamilyTable

_MAX_LISTED = 8


def match_parameters(geometry: Geometry, checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    """Return for every parameter of the model the tensor that holds it, by the parameter's name without prefix.

    Raises: ModelLoadError that lists the tensors no rule knows, the parameters no file has, or the first tensor of
    a wrong shape or type.
    """
    table = TABLES[geometry.family]
    parameters = {parameter.name: parameter for parameter in model_parameters(geometry)}
    entries = {name.removeprefix(table.prefix): entry for name, entry in checkpoint.tensors.items()}
    _check_names(geometry, table, set(parameters), entries)
    for name, parameter in parameters.items():
        _check_tensor(parameter, entries[name])
    return {name: entries[name] for name in parameters}


def _check_names(geometry: Geometry, table: FamilyTable, known: set[str], entries: dict[str, TensorEntry]) -> None:
    unknown = sorted(name for name in set(entries) - known if not table.is_ignored(name))
    missing = sorted(known - set(entries))
    if not unknown and not missing:
        return
    problems, hint = [], None
    if unknown:
        problems.append(f"{len(unknown)} parameters that family {geometry.family!r} does not know: {_listed(unknown)}")
        close = nearest(unknown[0], missing or known)
        hint = f"did you mean `{close}`? " if close else ""
        hint += "architectures and the sizes in config.json must be those of the weights"
    if missing:
        problems.append(f"{len(missing)} parameters are missing: {_listed(missing)}")
    raise ModelLoadError(f"{geometry.name}: weights do not fit config.json: {'; '.join(problems)}", hint=hint)


def _check_tensor(parameter: Parameter, entry: TensorEntry) -> None:
    if entry.shape != parameter.shape:
        axes = " x ".join(parameter.rule.axes)
        raise ModelLoadError(
            f"{entry.path}: tensor {entry.name!r}: expected shape {list(parameter.shape)} ({axes}) from config.json, "
            f"found {list(entry.shape)}"
        )
    if entry.dtype not in WEIGHT_DTYPES:
        raise ModelLoadError(
            f"{entry.path}: tensor {entry.name!r}: expected dtype {', '.join(WEIGHT_DTYPES)}, found {entry.dtype}",
            hint="use the unquantised checkpoint of this model",
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + rest
