"""Specs from the plan that transformers' own models carry for tensor parallelism."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from corebound.errors import ShardingError
from corebound.sharding.modules.layouts import GATE_UP
from corebound.sharding.modules.spec import LinearSpec

_SUMMED_MODULES = ("moe_tp_experts", "all_reduce")
_NOTHING = ("replicate", "replicated_with_grad_allreduce", "embedding_rowwise", "embedding_colwise")


@dataclass(frozen=True)
class ModelPlan:
    """What a model's `_tp_plan` says: specs for its matrices, and modules whose output is summed."""

    specs: tuple[LinearSpec, ...] = ()
    sums: tuple[str, ...] = ()


def plan_of(model: nn.Module) -> ModelPlan:
    """Return what the model's own plan says.

    Raises: ShardingError naming an entry of a style that is not known here.
    """
    specs, sums = [], []
    for name, style in (getattr(model, "_tp_plan", None) or {}).items():
        pattern = re.escape(name).replace(r"\*", r"\d+")
        if style == "colwise":
            specs.append(LinearSpec(pattern, "column"))
        elif style in ("colwise_gather_output", "colwise_rep"):
            specs.append(LinearSpec(pattern, "column", "even", whole_activation=True))
        elif style == "rowwise":
            specs.append(LinearSpec(pattern, "row"))
        elif style in ("rowwise_split_input", "rowwise_rep"):
            specs.append(LinearSpec(pattern, "row", "even", whole_activation=True))
        elif style == "packed_colwise":
            specs.append(LinearSpec(pattern, "column", GATE_UP))
        elif style in _SUMMED_MODULES:
            sums.append(pattern)
        elif style not in _NOTHING:
            raise ShardingError(
                f"{name}: the model's own plan has style {style!r}, which is not known here",
                hint="give a policy: LinearSpec(pattern, 'column' | 'row' | 'skip', layout)",
            )
    return ModelPlan(_summed(specs, sums), tuple(sums))


def _summed(specs: list[LinearSpec], sums: list[str]) -> tuple[LinearSpec, ...]:
    """Return the specs, with products inside a summed module left partial."""
    return tuple(
        LinearSpec(spec.pattern, spec.partition, spec.layout, summed_later=True)
        if spec.partition == "row" and any(spec.pattern.startswith(module + r"\.") for module in sums)
        else spec
        for spec in specs
    )
