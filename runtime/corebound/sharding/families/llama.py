"""LLaMA: separate q, k, v with fewer kv heads, gate and up projections, optional biases."""

from __future__ import annotations

from corebound.sharding.table import Axis, Decision, FamilyTable, Rule

_H, _I, _Q, _KV = Axis.HIDDEN, Axis.INTERMEDIATE, Axis.QUERY, Axis.KV
_HEADS, _OUTPUTS, _INPUTS, _WHOLE = (
    Decision.SPLIT_HEADS_OUTPUTS,
    Decision.SPLIT_OUTPUTS,
    Decision.SPLIT_INPUTS,
    Decision.REPLICATE,
)

TABLE = FamilyTable(
    family="llama",
    prefix="",
    layer_prefix="model.layers.{layer}.",
    qkv_layout="stacked",
    rules=(
        Rule("model.embed_tokens.weight", "embedding_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB),
        Rule("model.norm.weight", "final_norm_weight", (_H,), _WHOLE),
        Rule("lm_head.weight", "head_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB, needs="untied_head"),
    ),
    layer_rules=(
        Rule("input_layernorm.weight", "attention_norm_weight", (_H,), _WHOLE),
        Rule("self_attn.q_proj.weight", "qkv_weight", (_Q, _H), _HEADS),
        Rule("self_attn.k_proj.weight", "qkv_weight", (_KV, _H), _HEADS),
        Rule("self_attn.v_proj.weight", "qkv_weight", (_KV, _H), _HEADS),
        Rule("self_attn.q_proj.bias", "qkv_bias", (_Q,), _HEADS, needs="attention_bias"),
        Rule("self_attn.k_proj.bias", "qkv_bias", (_KV,), _HEADS, needs="attention_bias"),
        Rule("self_attn.v_proj.bias", "qkv_bias", (_KV,), _HEADS, needs="attention_bias"),
        Rule("self_attn.o_proj.weight", "attention_out_weight", (_H, _Q), _INPUTS),
        Rule("self_attn.o_proj.bias", "attention_out_bias", (_H,), _WHOLE, needs="attention_bias"),
        Rule("post_attention_layernorm.weight", "mlp_norm_weight", (_H,), _WHOLE),
        Rule("mlp.gate_proj.weight", "mlp_in_weight", (_I, _H), _OUTPUTS),
        Rule("mlp.up_proj.weight", "mlp_in_weight", (_I, _H), _OUTPUTS),
        Rule("mlp.gate_proj.bias", "mlp_in_bias", (_I,), _OUTPUTS, needs="mlp_bias"),
        Rule("mlp.up_proj.bias", "mlp_in_bias", (_I,), _OUTPUTS, needs="mlp_bias"),
        Rule("mlp.down_proj.weight", "mlp_out_weight", (_H, _I), _INPUTS),
        Rule("mlp.down_proj.bias", "mlp_out_bias", (_H,), _WHOLE, needs="mlp_bias"),
    ),
    # A tied head is the embedding again; the frequencies are computed from the configuration.
    ignored=(
        r"lm_head\.weight",
        r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        r"model\.rotary_emb\.inv_freq",
    ),
)
