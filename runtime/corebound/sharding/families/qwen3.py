"""Qwen3: the parameters of LLaMA, and a norm of each head of the queries and of the keys."""

from __future__ import annotations

from corebound.sharding.families.llama_like import DOWN, GATE_UP, OUT, QK_NORMS, QKV, biases, norm, table

TABLE = table(
    "qwen3",
    (
        *norm("input_layernorm", "attention_norm"),
        *QKV,
        *biases(QKV, "attention_bias"),
        *QK_NORMS,
        *OUT,
        *biases(OUT, "attention_bias"),
        *norm("post_attention_layernorm", "mlp_norm"),
        *GATE_UP,
        *DOWN,
    ),
)
