"""OPT: separate q, k, v, learned positions, layer norms; biases of all matrices or of none."""

from __future__ import annotations

from corebound.sharding.families.llama_like import biases, norm
from corebound.sharding.table import Axis, Decision, FamilyTable, Rule

_H, _I, _Q = Axis.HIDDEN, Axis.INTERMEDIATE, Axis.QUERY
_HEADS = Decision.SPLIT_HEADS_OUTPUTS
_ATTENTION = (
    Rule("self_attn.q_proj.weight", "qkv_weight", (_Q, _H), _HEADS),
    Rule("self_attn.k_proj.weight", "qkv_weight", (Axis.KV, _H), _HEADS),
    Rule("self_attn.v_proj.weight", "qkv_weight", (Axis.KV, _H), _HEADS),
    Rule("self_attn.out_proj.weight", "attention_out_weight", (_H, _Q), Decision.SPLIT_INPUTS),
)
_MLP = (
    Rule("fc1.weight", "mlp_in_weight", (_I, _H), Decision.SPLIT_OUTPUTS),
    Rule("fc2.weight", "mlp_out_weight", (_H, _I), Decision.SPLIT_INPUTS),
)

TABLE = FamilyTable(
    family="opt",
    prefix="model.",
    layer_prefix="decoder.layers.{layer}.",
    qkv_layout="stacked",
    rules=(
        Rule("decoder.embed_tokens.weight", "embedding_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB),
        Rule("decoder.embed_positions.weight", "position_embedding_weight", (Axis.POSITION, _H), Decision.REPLICATE),
        *norm("decoder.final_layer_norm", "final_norm", bias=True),
        Rule("lm_head.weight", "head_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB, needs="untied_head"),
    ),
    layer_rules=(
        *norm("self_attn_layer_norm", "attention_norm", bias=True),
        *_ATTENTION,
        *norm("final_layer_norm", "mlp_norm", bias=True),
        *_MLP,
        *biases((*_ATTENTION, *_MLP), "biases"),
    ),
    # A tied head is the embedding again; converted checkpoints may carry the version of their format.
    ignored=(r"lm_head\.weight", r"decoder\.version"),
)
