"""Granite: the parameters of LLaMA."""

from __future__ import annotations

from corebound.sharding.families.llama_like import DOWN, GATE_UP, OUT, QKV, biases, norm, table

TABLE = table(
    "granite",
    (
        *norm("input_layernorm", "attention_norm"),
        *QKV,
        *biases(QKV, "attention_bias"),
        *OUT,
        *biases(OUT, "attention_bias"),
        *norm("post_attention_layernorm", "mlp_norm"),
        *GATE_UP,
        *biases(GATE_UP, "mlp_bias"),
        *DOWN,
        *biases(DOWN, "mlp_bias"),
    ),
)
