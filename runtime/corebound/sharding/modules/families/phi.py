"""Phi: attention and MLP side by side. Phi-3: q, k, v stacked with unequal widths, gate and up stacked."""

from corebound.sharding.modules.adaptations import own_config
from corebound.sharding.modules.families.llama import GROUPS, PROJECTIONS
from corebound.sharding.modules.layouts import GATE_UP, STACKED_QKV
from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable, config_heads

PHI = ModuleTable(
    heads=config_heads,
    attention="self_attn",
    attributes=GROUPS,
    specs=(
        *PROJECTIONS,
        LinearSpec("self_attn.dense", "row", "heads"),
        LinearSpec("mlp.fc1", "column", "even"),
        LinearSpec("mlp.fc2", "row", "even"),
    ),
    parallel=("self_attn.dense", "mlp.fc2"),
)

PHI3 = ModuleTable(
    heads=config_heads,
    attention="self_attn",
    attributes={**GROUPS, "num_key_value_heads": "kv_heads"},
    specs=(
        LinearSpec("self_attn.qkv_proj", "column", STACKED_QKV),
        LinearSpec("self_attn.o_proj", "row", "heads"),
        LinearSpec("mlp.gate_up_proj", "column", GATE_UP),
        LinearSpec("mlp.down_proj", "row", "even"),
    ),
    # Its attention reads the number of query heads from the configuration in every step.
    adaptations=(own_config,),
)
