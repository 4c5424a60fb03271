"""Falcon, old and new: each kv head after the queries that read it, in one matrix; one, two or other norms."""

from __future__ import annotations

from corebound.sharding.families.llama_like import biases, norm
from corebound.sharding.table import Axis, Decision, FamilyTable, Rule

_H, _I = Axis.HIDDEN, Axis.INTERMEDIATE
_MATRICES = (
    Rule(
        "self_attention.query_key_value.weight",
        "qkv_weight",
        (Axis.QKV_PER_GROUP, _H),
        Decision.SPLIT_HEADS_OUTPUTS,
    ),
    Rule("self_attention.dense.weight", "attention_out_weight", (_H, Axis.QUERY), Decision.SPLIT_INPUTS),
    Rule("mlp.dense_h_to_4h.weight", "mlp_in_weight", (_I, _H), Decision.SPLIT_OUTPUTS),
    Rule("mlp.dense_4h_to_h.weight", "mlp_out_weight", (_H, _I), Decision.SPLIT_INPUTS),
)

TABLE = FamilyTable(
    family="falcon",
    prefix="transformer.",
    layer_prefix="h.{layer}.",
    qkv_layout="stacked",  # as a rank holds its rows
    rules=(
        Rule("word_embeddings.weight", "embedding_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB),
        *norm("ln_f", "final_norm", bias=True),
        Rule("lm_head.weight", "head_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB, needs="untied_head"),
    ),
    layer_rules=(
        *norm("input_layernorm", "attention_norm", bias=True, needs="input_norm"),
        *norm("ln_attn", "attention_norm", bias=True, needs="two_norms"),
        *norm("ln_mlp", "mlp_norm", bias=True, needs="two_norms"),
        *norm("post_attention_layernorm", "mlp_norm", bias=True, needs="sequential"),
        *_MATRICES,
        *biases(_MATRICES, "biases"),
    ),
    # A tied head is the embedding again; frequencies are computed.
    ignored=(r"lm_head\.weight", r"h\.\d+\.self_attention\.rotary_emb\.inv_freq"),
)
