"""GPT-J: separate q, k, v without biases, one norm for attention and MLP, a head with a bias."""

from __future__ import annotations

from corebound.sharding.families.llama_like import biases, norm
from corebound.sharding.table import Axis, Decision, FamilyTable, Rule

_H, _I, _Q = Axis.HIDDEN, Axis.INTERMEDIATE, Axis.QUERY
_HEADS = Decision.SPLIT_HEADS_OUTPUTS
_MLP = (
    Rule("mlp.fc_in.weight", "mlp_in_weight", (_I, _H), Decision.SPLIT_OUTPUTS),
    Rule("mlp.fc_out.weight", "mlp_out_weight", (_H, _I), Decision.SPLIT_INPUTS),
)

TABLE = FamilyTable(
    family="gptj",
    prefix="transformer.",
    layer_prefix="h.{layer}.",
    qkv_layout="stacked",
    rules=(
        Rule("wte.weight", "embedding_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB),
        *norm("ln_f", "final_norm", bias=True),
        Rule("lm_head.weight", "head_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB, needs="untied_head"),
        Rule("lm_head.bias", "head_bias", (Axis.VOCAB,), Decision.SPLIT_VOCAB),
    ),
    layer_rules=(
        *norm("ln_1", "attention_norm", bias=True),
        Rule("attn.q_proj.weight", "qkv_weight", (_Q, _H), _HEADS),
        Rule("attn.k_proj.weight", "qkv_weight", (Axis.KV, _H), _HEADS),
        Rule("attn.v_proj.weight", "qkv_weight", (Axis.KV, _H), _HEADS),
        Rule("attn.out_proj.weight", "attention_out_weight", (_H, _Q), Decision.SPLIT_INPUTS),
        *_MLP,
        *biases(_MLP),
    ),
    # A tied head is the embedding again; the others are constants that old versions saved.
    ignored=(r"lm_head\.weight", r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)"),
)
