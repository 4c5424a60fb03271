"""MPT: q, k, v in thirds; alibi from the table of all heads."""

from corebound.sharding.modules.adaptations import slice_mpt_alibi
from corebound.sharding.modules.layouts import STACKED_QKV
from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable, config_heads

TABLE = ModuleTable(
    heads=config_heads,
    attention="attn",
    attributes={"n_heads": "heads"},
    specs=(
        LinearSpec("attn.Wqkv", "column", STACKED_QKV),
        LinearSpec("attn.out_proj", "row", "heads"),
        LinearSpec("ffn.up_proj", "column", "even"),
        LinearSpec("ffn.down_proj", "row", "even"),
    ),
    adaptations=(slice_mpt_alibi,),
)
