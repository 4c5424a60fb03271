"""Rules of layers with experts: a router that every rank holds whole, and each expert split within itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from corebound.sharding.families.llama_like import DOWN, GATE_UP
from corebound.sharding.table import Axis, Decision, Rule

_H, _EXPERT, _SHARED = Axis.HIDDEN, Axis.EXPERT_INTERMEDIATE, Axis.SHARED_INTERMEDIATE
EXPERTS, ONE_MLP = "experts", "one_mlp"


def router(name: str) -> tuple[Rule, ...]:
    """Return the rule of the matrix that scores the experts."""
    return (Rule(f"{name}.weight", "router_weight", (Axis.EXPERT, _H), Decision.REPLICATE, needs=EXPERTS),)


def expert_rules(name: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Return the rules of one expert, whose `name` holds its number."""
    return (
        Rule(f"{name}.{gate}.weight", "mlp_in_weight", (_EXPERT, _H), Decision.SPLIT_OUTPUTS),
        Rule(f"{name}.{up}.weight", "mlp_in_weight", (_EXPERT, _H), Decision.SPLIT_OUTPUTS),
        Rule(f"{name}.{down}.weight", "mlp_out_weight", (_H, _EXPERT), Decision.SPLIT_INPUTS),
    )


# The score of the shared expert is one more output of the router.
SHARED = (
    Rule("mlp.shared_expert_gate.weight", "router_weight", (Axis.SINGLE, _H), Decision.REPLICATE, needs=EXPERTS),
    *(
        Rule(f"mlp.shared_expert.{name}_proj.weight", field, axes, decision, needs=EXPERTS)
        for name, field, axes, decision in (
            ("gate", "shared.mlp_in_weight", (_SHARED, _H), Decision.SPLIT_OUTPUTS),
            ("up", "shared.mlp_in_weight", (_SHARED, _H), Decision.SPLIT_OUTPUTS),
            ("down", "shared.mlp_out_weight", (_H, _SHARED), Decision.SPLIT_INPUTS),
        )
    ),
)


def in_dense_layers(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return rules that hold where a layer has one MLP in place of experts."""
    return tuple(replace(rule, needs=ONE_MLP) for rule in rules)


DENSE_MLP = in_dense_layers((*GATE_UP, *DOWN))
QWEN_EXPERTS = expert_rules("mlp.experts.{expert}", "gate_proj", "up_proj", "down_proj")
