"""Gemma: the parameters of LLaMA, with optional biases of the attention, and a tied head."""

from __future__ import annotations

from corebound.sharding.families.llama_like import DOWN, GATE_UP, OUT, QKV, biases, norm, table

TABLE = table(
    "gemma",
    (
        *norm("input_layernorm", "attention_norm"),
        *QKV,
        *biases(QKV, "attention_bias"),
        *OUT,
        *biases(OUT, "attention_bias"),
        *norm("post_attention_layernorm", "mlp_norm"),
        *GATE_UP,
        *DOWN,
    ),
)
