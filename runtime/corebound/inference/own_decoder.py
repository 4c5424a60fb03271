"""Corebound's decoder made of the weights that a transformers module holds on this rank, where it can express it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from corebound import kernels
from corebound.comm.base import Collectives
from corebound.errors import CoreboundError, ModelError
from corebound.inference.sources import Taken
from corebound.inference.weight_only import QuantizedWeight
from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.decoder import Decoder
from corebound.models.description import ModelDescription
from corebound.models.families import ARCHITECTURES
from corebound.models.loading import team_cpus
from corebound.models.native_decoder import NativeDecoder
from corebound.models.native_weights import arrange_native, panel_matrices, place_matrices
from corebound.models.storage import matrix_schemes, panel_format
from corebound.models.weights import add_to_norms, arrange
from corebound.quantization.scheme import Scheme
from corebound.sharding import ShardPlan, shard_plan
from corebound.sharding.checkpoint import Checkpoint
from corebound.sharding.plan import Parameter

_STACKED = 2  # a field of several parameters, such as q, k and v, is one matrix


_Found = tuple[ModelDescription, ShardPlan, dict[str, Tensor | QuantizedWeight]]


class CannotExpressError(ModelError):
    """A model that Corebound's decoder does not compute; the message says what is missing."""


def own_decoder(
    module: nn.Module, dtype: torch.dtype, taken: Mapping[str, Taken], collectives: Collectives
) -> Decoder | NativeDecoder:
    """Return a decoder with this rank's weights of the module. All ranks call it.

    In bfloat16 its matrices are copied into panels; in another type only those are copied that it joins.

    Raises: CannotExpressError.
    """
    found: _Found | None = None
    reason = ""
    try:
        found = _find(module, dtype, taken, collectives)
    except CannotExpressError as error:
        reason = error.message
    # Uneven heads can make it one rank's trouble; then all of them must know.
    reasons = [collectives.broadcast_object(reason, root=rank) for rank in range(collectives.size)]
    reason = next((other for other in reasons if other), "")
    if found is None or reason:
        raise CannotExpressError(reason)
    description, plan, tensors = found
    if dtype == torch.bfloat16 and kernels.all_native():
        return _native(description, plan, tensors, collectives)
    fields: dict[str, list[Tensor]] = {}
    for parameter in plan.parameters:
        part = tensors[parameter.name]
        assert isinstance(part, Tensor), "checked before"
        fields.setdefault(parameter.field, []).append(part)
    joined = {field: parts[0] if len(parts) < _STACKED else torch.cat(parts) for field, parts in fields.items()}
    # As loading does; the native decoder adds it itself.
    joined = add_to_norms(joined, description.norm_offset)
    return Decoder(description, plan, arrange(joined, description.num_layers, description.num_experts), collectives)


def _find(module: nn.Module, dtype: torch.dtype, taken: Mapping[str, Taken], collectives: Collectives) -> _Found:
    """Return what the decoder is made of, on this rank alone."""
    description = describe_module(module, dtype)
    try:
        plan = shard_plan(description, collectives.size)
    except CoreboundError as error:
        raise CannotExpressError(error.message) from error
    tensors = _local_tensors(module, plan, taken, collectives.rank)
    is_native = dtype == torch.bfloat16 and kernels.all_native()
    if not is_native and any(isinstance(part, QuantizedWeight) for part in tensors.values()):
        raise CannotExpressError("quantized weights are computed with in bfloat16 by native kernels only")
    return description, plan, tensors


def describe_module(module: nn.Module, dtype: torch.dtype) -> ModelDescription:
    """Return what Corebound knows of a transformers model by its configuration.

    Raises: CannotExpressError.
    """
    config: Any = getattr(module, "config", None)
    name = type(module).__name__
    read = ARCHITECTURES.get(name)
    if read is None or config is None:
        raise CannotExpressError(f"{name} is none of {', '.join(sorted(ARCHITECTURES))}")
    try:
        found: Architecture = read(ConfigReader(Path(f"{name}.config"), config.to_dict()), name)
    except CoreboundError as error:
        raise CannotExpressError(error.message) from error
    fields = {item: getattr(found, item) for item in found.__dataclass_fields__}
    return ModelDescription(
        **fields,
        path=Path(getattr(config, "_name_or_path", "") or name),
        architecture=name,
        dtype=str(dtype).removeprefix("torch."),
        checkpoint=Checkpoint({}, {}),
        entries={},
    )


def _local_tensors(
    module: nn.Module, plan: ShardPlan, taken: Mapping[str, Taken], rank: int
) -> dict[str, Tensor | QuantizedWeight]:
    """Return this rank's tensors by the plan's names, having checked that each is just what the plan gives the rank."""
    state: dict[str, Tensor | QuantizedWeight] = dict(module.state_dict(keep_vars=True))
    for name, part in module.named_modules():
        if isinstance(part, QuantizedWeight):
            state[f"{name.removesuffix('.quantized')}.weight"] = part
    found: dict[str, Tensor | QuantizedWeight] = {}
    for parameter in plan.parameters:
        names = (plan.table.prefix + parameter.name, parameter.name)
        name = next((name for name in names if name in state), None)
        if name is None:
            raise CannotExpressError(f"the module has no tensor {names[0]!r} any more")
        tensor = state[name]
        is_share = _is_share(parameter, plan, rank, taken.get(name))
        if not is_share or tuple(tensor.shape) != plan.local_shape(parameter, rank):
            raise CannotExpressError(f"{name!r} is split over the ranks in another way than the decoder's")
        found[parameter.name] = tensor.detach() if isinstance(tensor, Tensor) else tensor
    return found


def _is_share(parameter: Parameter, plan: ShardPlan, rank: int, taken: Taken | None) -> bool:
    cut = parameter.rule.cut_dim
    whole = (range(parameter.shape[cut]),)
    wanted = _joined(plan.ranges(parameter, rank))
    if taken is None:
        return wanted == whole
    return taken.dim == cut and _joined(taken.ranges) == wanted


def _joined(parts: tuple[range, ...]) -> tuple[range, ...]:
    joined: list[range] = []
    for part in parts:
        if joined and joined[-1].stop == part.start:
            joined[-1] = range(joined[-1].start, part.stop)
        elif part:
            joined.append(part)
    return tuple(joined)


def _native(
    description: ModelDescription,
    plan: ShardPlan,
    tensors: Mapping[str, Tensor | QuantizedWeight],
    collectives: Collectives,
) -> NativeDecoder:
    rank = collectives.rank
    schemes: dict[str, Scheme] = {}
    for parameter in plan.parameters:
        part = tensors[parameter.name]
        if isinstance(part, QuantizedWeight):
            schemes[parameter.field] = part.scheme
    fields = matrix_schemes(description, plan, rank, None)
    forms = {field: panel_format(schemes.get(field)) for field in fields}
    matrices = panel_matrices(description, plan, rank, forms)
    place_matrices(matrices)
    first_row = dict.fromkeys(matrices, 0)
    small: dict[str, list[Tensor]] = {}
    for parameter in plan.parameters:
        rows, field = tensors[parameter.name], parameter.field
        if isinstance(rows, QuantizedWeight):
            codes = rows.matrix()
            matrices[field].put_codes(first_row[field], codes.codes, codes.scales, codes.zeros.float())
        elif field in matrices:
            matrices[field].put(first_row[field], rows.contiguous())
        else:
            small.setdefault(field, []).append(rows)
            continue
        first_row[field] += rows.shape[0]
    others = {field: torch.cat(parts) if len(parts) > 1 else parts[0] for field, parts in small.items()}
    weights = arrange_native(matrices, others, description.num_layers, description.num_experts)
    decoder = NativeDecoder(description, plan, weights, collectives, team_cpus())
    decoder.tune()
    return decoder
