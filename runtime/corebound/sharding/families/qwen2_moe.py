"""Qwen2-MoE: the attention of Qwen2; experts and one that all tokens share, or an MLP in some layers."""

from __future__ import annotations

from corebound.sharding.families.experts import DENSE_MLP, QWEN_EXPERTS, SHARED, router
from corebound.sharding.families.llama_like import OUT, QKV, biases, norm, table

TABLE = table(
    "qwen2_moe",
    (
        *norm("input_layernorm", "attention_norm"),
        *QKV,
        *biases(QKV, "qkv_bias"),
        *OUT,
        *norm("post_attention_layernorm", "mlp_norm"),
        *DENSE_MLP,
        *router("mlp.gate"),
        *SHARED,
    ),
    expert_rules=QWEN_EXPERTS,
)
