"""Mixtral and Qwen2-MoE: routers whole on every rank, each expert split within itself, one sum for the whole block."""

from corebound.sharding.modules.families.llama import ATTENTION, GATED_MLP, GROUPS
from corebound.sharding.modules.layouts import GATE_UP
from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable, config_heads

_EXPERTS = (
    LinearSpec("mlp.gate.weight", "skip"),
    LinearSpec("mlp.experts.gate_up_proj", "column", GATE_UP),
    LinearSpec("mlp.experts.down_proj", "row", "even", summed_later=True),
)
_SHARED_EXPERT = (
    LinearSpec("mlp.shared_expert_gate", "skip"),
    LinearSpec("mlp.shared_expert.(gate|up)_proj", "column", "even"),
    LinearSpec("mlp.shared_expert.down_proj", "row", "even", summed_later=True),
)

MIXTRAL = ModuleTable(
    heads=config_heads,
    attention="self_attn",
    attributes=GROUPS,
    specs=ATTENTION + _EXPERTS,
    sums=("mlp",),
)

# Some of its layers can have an MLP in place of experts; that one sums its own product.
QWEN2_MOE = ModuleTable(
    heads=config_heads,
    attention="self_attn",
    attributes=GROUPS,
    specs=ATTENTION + _EXPERTS + _SHARED_EXPERT + GATED_MLP,
    sums=("mlp",),
)
