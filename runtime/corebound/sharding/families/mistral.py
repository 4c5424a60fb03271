"""Mistral: the parameters of LLaMA, without biases."""

from __future__ import annotations

from corebound.sharding.families.llama_like import DOWN, GATE_UP, OUT, QKV, norm, table

TABLE = table(
    "mistral",
    (
        *norm("input_layernorm", "attention_norm"),
        *QKV,
        *OUT,
        *norm("post_attention_layernorm", "mlp_norm"),
        *GATE_UP,
        *DOWN,
    ),
)
