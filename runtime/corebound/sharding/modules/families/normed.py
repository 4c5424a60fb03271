"""Families that are LLaMA's with norms of queries and keys: OLMo 2 over all heads, Cohere and StableLM for each."""

from typing import Any

from corebound.sharding.modules.adaptations import slice_norms_per_head, sum_norms_over_ranks
from corebound.sharding.modules.families.llama import ATTENTION, GATED_MLP, GROUPS
from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable, config_heads

OLMO2 = ModuleTable(
    heads=config_heads,
    attention="self_attn",
    attributes=GROUPS,
    specs=ATTENTION + GATED_MLP,
    adaptations=(sum_norms_over_ranks,),
)

COHERE = ModuleTable(
    heads=config_heads,
    attention="self_attn",
    attributes=GROUPS,
    specs=(
        *ATTENTION,
        LinearSpec("self_attn.q_norm.weight", "column", "head_index"),
        LinearSpec("self_attn.k_norm.weight", "column", "kv_head_index"),
        *GATED_MLP,
    ),
    parallel=("self_attn.o_proj", "mlp.down_proj"),
)


def stablelm(config: Any) -> ModuleTable:
    """Return the table, by whether the residual is parallel."""
    return ModuleTable(
        heads=config_heads,
        attention="self_attn",
        attributes={**GROUPS, "num_heads": "heads", "num_key_value_heads": "kv_heads"},
        specs=ATTENTION + GATED_MLP,
        parallel=("self_attn.o_proj", "mlp.down_proj") if config.use_parallel_residual else None,
        adaptations=(slice_norms_per_head,),
    )
