"""BLOOM: fused q, k, v per head, biases everywhere, a norm after the embedding, usually a tied head."""

from __future__ import annotations

from corebound.sharding.table import Axis, Decision, FamilyTable, Rule

_H, _I, _Q, _QKV = Axis.HIDDEN, Axis.INTERMEDIATE, Axis.QUERY, Axis.QKV_PER_HEAD
_WHOLE = Decision.REPLICATE

TABLE = FamilyTable(
    family="bloom",
    prefix="transformer.",
    layer_prefix="h.{layer}.",
    qkv_layout="per_head",
    rules=(
        Rule("word_embeddings.weight", "embedding_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB),
        Rule("word_embeddings_layernorm.weight", "embedding_norm_weight", (_H,), _WHOLE),
        Rule("word_embeddings_layernorm.bias", "embedding_norm_bias", (_H,), _WHOLE),
        Rule("ln_f.weight", "final_norm_weight", (_H,), _WHOLE),
        Rule("ln_f.bias", "final_norm_bias", (_H,), _WHOLE),
        Rule("lm_head.weight", "head_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB, needs="untied_head"),
    ),
    layer_rules=(
        Rule("input_layernorm.weight", "attention_norm_weight", (_H,), _WHOLE),
        Rule("input_layernorm.bias", "attention_norm_bias", (_H,), _WHOLE),
        Rule("self_attention.query_key_value.weight", "qkv_weight", (_QKV, _H), Decision.SPLIT_HEADS_OUTPUTS),
        Rule("self_attention.query_key_value.bias", "qkv_bias", (_QKV,), Decision.SPLIT_HEADS_OUTPUTS),
        Rule("self_attention.dense.weight", "attention_out_weight", (_H, _Q), Decision.SPLIT_INPUTS),
        Rule("self_attention.dense.bias", "attention_out_bias", (_H,), _WHOLE),
        Rule("post_attention_layernorm.weight", "mlp_norm_weight", (_H,), _WHOLE),
        Rule("post_attention_layernorm.bias", "mlp_norm_bias", (_H,), _WHOLE),
        Rule("mlp.dense_h_to_4h.weight", "mlp_in_weight", (_I, _H), Decision.SPLIT_OUTPUTS),
        Rule("mlp.dense_h_to_4h.bias", "mlp_in_bias", (_I,), Decision.SPLIT_OUTPUTS),
        Rule("mlp.dense_4h_to_h.weight", "mlp_out_weight", (_H, _I), Decision.SPLIT_INPUTS),
        Rule("mlp.dense_4h_to_h.bias", "mlp_out_bias", (_H,), _WHOLE),
    ),
    # A tied head is the embedding again; the masks are constants that old versions saved.
    ignored=(r"lm_head\.weight", r"h\.\d+\.self_attention\.(masked_bias|bias|causal_mask)"),
)
