"""Qwen3-MoE: the attention of Qwen3; experts, or an MLP in some layers."""

from __future__ import annotations

from corebound.sharding.families.experts import DENSE_MLP, QWEN_EXPERTS, router
from corebound.sharding.families.llama_like import OUT, QK_NORMS, QKV, biases, norm, table

TABLE = table(
    "qwen3_moe",
    (
        *norm("input_layernorm", "attention_norm"),
        *QKV,
        *biases(QKV, "attention_bias"),
        *QK_NORMS,
        *OUT,
        *biases(OUT, "attention_bias"),
        *norm("post_attention_layernorm", "mlp_norm"),
        *DENSE_MLP,
        *router("mlp.gate"),
    ),
    expert_rules=QWEN_EXPERTS,
)
