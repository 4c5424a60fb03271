"""Qwen2: the parameters of LLaMA, with biases of q, k and v alone."""

from __future__ import annotations

from corebound.sharding.families.llama_like import DOWN, GATE_UP, OUT, QKV, biases, norm, table

TABLE = table(
    "qwen2",
    (
        *norm("input_layernorm", "attention_norm"),
        *QKV,
        *biases(QKV),
        *OUT,
        *norm("post_attention_layernorm", "mlp_norm"),
        *GATE_UP,
        *DOWN,
    ),
)
