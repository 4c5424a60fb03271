"""GPTBigCode (StarCoder): all q with one k and one v, or per head. StarCoder2: separate projections."""

from typing import Any

from corebound.sharding.modules.deal import Heads
from corebound.sharding.modules.families.llama import ATTENTION, GROUPS
from corebound.sharding.modules.layouts import STACKED_QKV
from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable, config_heads

_MLP = (LinearSpec("mlp.c_fc", "column", "even"), LinearSpec("mlp.c_proj", "row", "even"))


def _heads(config: Any) -> Heads:
    num_heads = config.num_attention_heads
    return Heads(num_heads, 1 if config.multi_query else num_heads, config.hidden_size // num_heads)


def gpt_bigcode(config: Any) -> ModuleTable:
    """Return the table, by whether all query heads share one key and value."""
    return ModuleTable(
        heads=_heads,
        attention="attn",
        attributes={
            "num_heads": "heads",
            "kv_heads": "kv_heads",
            "num_key_value_groups": "groups",
            "embed_dim": "query_width",
            "split_size": "query_width",
            "kv_dim": "kv_width",
        },
        specs=(
            LinearSpec("attn.c_attn", "column", STACKED_QKV if config.multi_query else "per_head"),
            LinearSpec("attn.c_proj", "row", "heads"),
            *_MLP,
        ),
    )


STARCODER2 = ModuleTable(heads=config_heads, attention="self_attn", attributes=GROUPS, specs=ATTENTION + _MLP)
