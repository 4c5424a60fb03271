"""StarCoder2: separate q, k, v as in LLaMA, an MLP without gate, layer norms, biases of all or of none."""

from __future__ import annotations

from corebound.sharding.families.llama_like import OUT, QKV, biases, norm, table
from corebound.sharding.table import Axis, Decision, Rule

_IN = (Rule("mlp.c_fc.weight", "mlp_in_weight", (Axis.INTERMEDIATE, Axis.HIDDEN), Decision.SPLIT_OUTPUTS),)
_OUT = (Rule("mlp.c_proj.weight", "mlp_out_weight", (Axis.HIDDEN, Axis.INTERMEDIATE), Decision.SPLIT_INPUTS),)

TABLE = table(
    "starcoder2",
    (
        *norm("input_layernorm", "attention_norm", bias=True),
        *QKV,
        *OUT,
        *norm("post_attention_layernorm", "mlp_norm", bias=True),
        *_IN,
        *_OUT,
        *biases((*QKV, *OUT, *_IN, *_OUT), "biases"),
    ),
    norm_bias=True,
)
