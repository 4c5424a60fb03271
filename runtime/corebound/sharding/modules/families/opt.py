"""OPT: learned positions; small ones project between the embedding and the hidden size, which stays whole."""

from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable, config_heads

TABLE = ModuleTable(
    heads=config_heads,
    attention="self_attn",
    attributes={"num_heads": "heads"},
    specs=(
        LinearSpec("self_attn.[qkv]_proj", "column", "heads"),
        LinearSpec("self_attn.out_proj", "row", "heads"),
        LinearSpec(r"layers\.\d+\.fc1", "column", "even"),
        LinearSpec(r"layers\.\d+\.fc2", "row", "even"),
        LinearSpec("project_(in|out)", "skip"),
    ),
)
