"""BLOOM: q, k, v per head; alibi from the table of all heads."""

from corebound.sharding.modules.adaptations import slice_bloom_alibi
from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable, config_heads

TABLE = ModuleTable(
    heads=config_heads,
    attention="self_attention",
    attributes={"num_heads": "heads"},
    specs=(
        LinearSpec("self_attention.query_key_value", "column", "per_head"),
        LinearSpec("self_attention.dense", "row", "heads"),
        LinearSpec("mlp.dense_h_to_4h", "column", "even"),
        LinearSpec("mlp.dense_4h_to_h", "row", "even"),
    ),
    adaptations=(slice_bloom_alibi,),
)
