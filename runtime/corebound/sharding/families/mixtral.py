"""Mixtral: the attention of LLaMA without biases, and experts in place of each MLP."""

from __future__ import annotations

from corebound.sharding.families.experts import expert_rules, router
from corebound.sharding.families.llama_like import OUT, QKV, norm, table

TABLE = table(
    "mixtral",
    (
        *norm("input_layernorm", "attention_norm"),
        *QKV,
        *OUT,
        *norm("post_attention_layernorm", "mlp_norm"),
        *router("block_sparse_moe.gate"),
    ),
    expert_rules=expert_rules("block_sparse_moe.experts.{expert}", "w1", "w3", "w2"),
)
