"""Checks of the decisions about a model, before anything is changed: what no single decision can show."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from corebound.errors import ConfigError, ShardingError
from corebound.sharding.modules.deal import Heads
from corebound.sharding.modules.decide import Decision
from corebound.sharding.modules.layers import ShardedLinear
from corebound.sharding.modules.spec import Policy

_LAYOUT_HINT = "give a policy that says how they are laid out: LinearSpec(pattern, 'column', layout)"


def check_whole(model: nn.Module) -> None:
    """Check that the model was not split before.

    Raises: ShardingError.
    """
    if any(isinstance(module, ShardedLinear) for module in model.modules()):
        raise ShardingError(f"this {type(model).__name__} is already split", hint="split a model that is whole")


def check_used(policy: Policy, names: Sequence[str]) -> None:
    """Check that every spec of the policy matches a matrix.

    Raises: ConfigError naming one that has no effect.
    """
    for spec in policy.specs:
        if not any(spec.matches(name) for name in names):
            raise ConfigError(
                f"policy: LinearSpec {spec.pattern!r} matches no matrix of the model",
                hint=f"the matrices, but for embedding and head, which are split by words: {', '.join(names[:8])}, …",
            )


def check_together(decisions: Sequence[Decision]) -> None:
    """Check that layers which feed each other are split alike.

    Raises: ShardingError naming a layer.
    """
    split: dict[str, Decision] = {}
    for decision in decisions:
        if decision.splits_heads:
            split.setdefault(decision.unit.parent, decision)
        elif _feeds_rows_as_is(decision):
            _check_plain_columns(decision, decisions)
    for parent, decision in split.items():
        if decision.unit.linear:
            _check_attention(decision, [other for other in decisions if other.unit.parent == parent])


def _feeds_rows_as_is(decision: Decision) -> bool:
    """Return whether outputs of no stated layout stay on their rank; gathered ones are in the model's own order."""
    spec = decision.spec
    stays = spec.partition == "column" and not spec.whole_activation
    return decision.unit.linear and stays and spec.layout is None


def _check_attention(decision: Decision, inside: Sequence[Decision]) -> None:
    """What is split on its way into an attention is also split on its way out."""
    kept = [other.unit.name for other in inside if other.unit.linear and other.spec.partition == "skip"]
    if kept or not any(other.spec.partition == "row" for other in inside):
        reason = f"{kept[0]} stays whole" if kept else "no layer beside it is row-parallel"
        raise ShardingError(
            f"{decision.unit.name} is split by heads, but {reason}",
            hint="split all projections of an attention, or skip all",
        )


def _check_plain_columns(decision: Decision, decisions: Sequence[Decision]) -> None:
    """Outputs of no stated layout are inputs of a row-parallel layer near by: more would be several, fused."""
    outputs, around = decision.unit.shape[0], decision.unit.parent
    while around:
        rows = [
            other
            for other in decisions
            if other.spec.partition == "row" and other.unit.linear and other.unit.name.startswith(around + ".")
        ]
        if any(other.unit.shape[1] == outputs for other in rows):
            return
        if rows:
            raise ShardingError(
                f"{decision.unit.name}: unknown fused layout: {outputs} outputs, where "
                f"{rows[0].unit.name} takes {rows[0].unit.shape[1]} inputs",
                hint=_LAYOUT_HINT,
            )
        around = around.rpartition(".")[0]
    raise ShardingError(f"{decision.unit.name} is split by columns, but no layer is row-parallel", hint=_LAYOUT_HINT)


def check_vectors(model: nn.Module, decisions: Sequence[Decision], heads: Heads) -> None:
    """Check that an attention without a table has no vectors over all heads, such as the weight of a norm over them.

    Raises: ShardingError naming the vector.
    """
    widths = {heads.query_width, heads.kv_width} - {heads.head_dim}
    split = [decision.unit.parent for decision in decisions if decision.splits_heads and decision.unit.linear]
    for parent in dict.fromkeys(split):
        for name, module in model.get_submodule(parent).named_modules(prefix=parent):
            for leaf, parameter in module.named_parameters(recurse=False):
                over_heads = name == parent or parameter.numel() in widths
                if not isinstance(module, nn.Linear) and parameter.dim() == 1 and over_heads:
                    raise ShardingError(
                        f"{name}.{leaf}: a vector of {parameter.numel()} over all heads, which a rank has some of",
                        hint="skip the projections of this attention: LinearSpec(pattern, 'skip')",
                    )
