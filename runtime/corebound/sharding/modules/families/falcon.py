"""Falcon: 40B and 180B fuse q, k, v per kv head, 7B all q with one k and one v, RW per head with alibi."""

from typing import Any

from corebound.sharding.modules.adaptations import slice_falcon_alibi
from corebound.sharding.modules.deal import Heads
from corebound.sharding.modules.layouts import STACKED_QKV, Layout
from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable


def _heads(config: Any) -> Heads:
    num_heads = config.num_attention_heads
    old_kv_heads = 1 if config.multi_query else num_heads
    num_kv_heads = config.num_kv_heads if config.new_decoder_architecture else old_kv_heads
    return Heads(num_heads, num_kv_heads, config.hidden_size // num_heads)


def table(config: Any) -> ModuleTable:
    """Return the table of the variant that the configuration describes."""
    layout: Layout = "per_head"
    if config.new_decoder_architecture:
        layout = "kv_groups"
    elif config.multi_query:
        layout = STACKED_QKV
    side_by_side = config.new_decoder_architecture or config.parallel_attn
    return ModuleTable(
        heads=_heads,
        attention="self_attention",
        attributes={"num_heads": "heads", "num_kv_heads": "kv_heads"},
        specs=(
            LinearSpec("self_attention.query_key_value", "column", layout),
            LinearSpec("self_attention.dense", "row", "heads"),
            LinearSpec("mlp.dense_h_to_4h", "column", "even"),
            LinearSpec("mlp.dense_4h_to_h", "row", "even"),
        ),
        parallel=("self_attention.dense", "mlp.dense_4h_to_h") if side_by_side else None,
        adaptations=(slice_falcon_alibi,) if config.alibi else (),
    )
