"""StableLM: the parameters of LLaMA with layer norms; no second norm with a parallel residual."""

from __future__ import annotations

from corebound.sharding.families.llama_like import DOWN, GATE_UP, OUT, QKV, biases, norm, table

TABLE = table(
    "stablelm",
    (
        *norm("input_layernorm", "attention_norm", bias=True),
        *QKV,
        *biases(QKV, "qkv_bias"),
        *OUT,
        *norm("post_attention_layernorm", "mlp_norm", bias=True, needs="mlp_norm"),
        *GATE_UP,
        *DOWN,
    ),
    norm_bias=True,
)
