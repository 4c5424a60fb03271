"""LLaMA: separate projections, gated MLP. Its names and shapes are those of many families."""

from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable, config_heads

GROUPS = {"num_key_value_groups": "groups"}
PROJECTIONS = (
    LinearSpec("self_attn.q_proj", "column", "heads"),
    LinearSpec("self_attn.[kv]_proj", "column", "kv_heads"),
)
ATTENTION = (*PROJECTIONS, LinearSpec("self_attn.o_proj", "row", "heads"))
GATED_MLP = (LinearSpec("mlp.(gate|up)_proj", "column", "even"), LinearSpec("mlp.down_proj", "row", "even"))

TABLE = ModuleTable(heads=config_heads, attention="self_attn", attributes=GROUPS, specs=ATTENTION + GATED_MLP)
