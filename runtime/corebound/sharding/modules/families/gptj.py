"""GPT-J and CodeGen: attention and MLP side by side; CodeGen's projection is fused in the blocks of its training."""

from corebound.sharding.modules.adaptations import flat_codegen_heads
from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable, config_heads

_MLP = (LinearSpec("mlp.fc_in", "column", "even"), LinearSpec("mlp.fc_out", "row", "even"))
_OUTPUT = LinearSpec("attn.out_proj", "row", "heads")

GPTJ = ModuleTable(
    heads=config_heads,
    attention="attn",
    attributes={"num_attention_heads": "heads"},
    specs=(LinearSpec("attn.[qkv]_proj", "column", "heads"), _OUTPUT, *_MLP),
    parallel=("attn.out_proj", "mlp.fc_out"),
)

CODEGEN = ModuleTable(
    heads=config_heads,
    attention="attn",
    attributes={"num_attention_heads": "heads"},
    specs=(LinearSpec("attn.qkv_proj", "column", "codegen"), _OUTPUT, *_MLP),
    parallel=("attn.out_proj", "mlp.fc_out"),
    adaptations=(flat_codegen_heads,),
)
