"""Phi-3: q, k and v stacked in one matrix, of unequal heights, and so gate and up; no biases."""

from __future__ import annotations

from corebound.sharding.families.llama_like import DOWN, OUT, norm, table
from corebound.sharding.table import Axis, Decision, Rule

TABLE = table(
    "phi3",
    (
        *norm("input_layernorm", "attention_norm"),
        Rule(
            "self_attn.qkv_proj.weight",
            "qkv_weight",
            (Axis.QKV_STACKED, Axis.HIDDEN),
            Decision.SPLIT_HEADS_OUTPUTS,
        ),
        *OUT,
        *norm("post_attention_layernorm", "mlp_norm"),
        Rule("mlp.gate_up_proj.weight", "mlp_in_weight", (Axis.GATE_UP_STACKED, Axis.HIDDEN), Decision.SPLIT_OUTPUTS),
        *DOWN,
    ),
)
