"""GPT-NeoX: q, k, v per head in one matrix, biases, two norms, usually an untied head."""

from __future__ import annotations

from corebound.sharding.families.llama_like import biases, norm
from corebound.sharding.table import Axis, Decision, FamilyTable, Rule

_H, _I = Axis.HIDDEN, Axis.INTERMEDIATE
_QKV = (Rule("attention.query_key_value.weight", "qkv_weight", (Axis.QKV_PER_HEAD, _H), Decision.SPLIT_HEADS_OUTPUTS),)
_OUT = (Rule("attention.dense.weight", "attention_out_weight", (_H, Axis.QUERY), Decision.SPLIT_INPUTS),)
_MLP = (
    Rule("mlp.dense_h_to_4h.weight", "mlp_in_weight", (_I, _H), Decision.SPLIT_OUTPUTS),
    Rule("mlp.dense_4h_to_h.weight", "mlp_out_weight", (_H, _I), Decision.SPLIT_INPUTS),
)

TABLE = FamilyTable(
    family="gpt_neox",
    prefix="gpt_neox.",
    layer_prefix="layers.{layer}.",
    qkv_layout="per_head",
    rules=(
        Rule("embed_in.weight", "embedding_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB),
        *norm("final_layer_norm", "final_norm", bias=True),
        Rule("embed_out.weight", "head_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB, needs="untied_head"),
    ),
    layer_rules=(
        *norm("input_layernorm", "attention_norm", bias=True),
        *_QKV,
        *_OUT,
        *biases((*_QKV, *_OUT), "attention_bias"),
        *norm("post_attention_layernorm", "mlp_norm", bias=True),
        *_MLP,
        *biases(_MLP),
    ),
    # A tied head is the embedding again; masks are constants that old versions saved, frequencies are computed.
    ignored=(
        r"embed_out\.weight",
        r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
        r"rotary_emb\.inv_freq",
    ),
)
