"""Specs from the plan that transformers' own models carry for tensor parallelism."""

from __future__ import annotations

from torch import nn

from corebound.sharding.modules.spec import LinearSpec


def plan_specs(model: nn.Module) -> tuple[LinearSpec, ...]:
    """Return specs for the model's `_tp_plan`."""
    return ()
