"""Tables of the families that name their parameters as LLaMA does: separate q, k, v, and gate and up projections."""

from __future__ import annotations

from collections.abc import Iterable

from corebound.sharding.table import Axis, Decision, FamilyTable, Rule

_H, _I, _Q, _KV = Axis.HIDDEN, Axis.INTERMEDIATE, Axis.QUERY, Axis.KV
_HEADS, _OUTPUTS, _INPUTS, _WHOLE = (
    Decision.SPLIT_HEADS_OUTPUTS,
    Decision.SPLIT_OUTPUTS,
    Decision.SPLIT_INPUTS,
    Decision.REPLICATE,
)

QKV = (
    Rule("self_attn.q_proj.weight", "qkv_weight", (_Q, _H), _HEADS),
    Rule("self_attn.k_proj.weight", "qkv_weight", (_KV, _H), _HEADS),
    Rule("self_attn.v_proj.weight", "qkv_weight", (_KV, _H), _HEADS),
)
OUT = (Rule("self_attn.o_proj.weight", "attention_out_weight", (_H, _Q), _INPUTS),)
GATE_UP = (
    Rule("mlp.gate_proj.weight", "mlp_in_weight", (_I, _H), _OUTPUTS),
    Rule("mlp.up_proj.weight", "mlp_in_weight", (_I, _H), _OUTPUTS),
)
DOWN = (Rule("mlp.down_proj.weight", "mlp_out_weight", (_H, _I), _INPUTS),)
QK_NORMS = (
    Rule("self_attn.q_norm.weight", "q_norm_weight", (Axis.HEAD_DIM,), _WHOLE),
    Rule("self_attn.k_norm.weight", "k_norm_weight", (Axis.HEAD_DIM,), _WHOLE),
)
# A tied head is the embedding again; the frequencies are computed from the configuration.
IGNORED = (
    r"lm_head\.weight",
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    r"model\.rotary_emb\.inv_freq",
)


def norm(name: str, field: str, *, bias: bool = False, needs: str | None = None) -> tuple[Rule, ...]:
    """Return the rules of a norm that every rank holds whole."""
    parts = ("weight", "bias") if bias else ("weight",)
    return tuple(Rule(f"{name}.{part}", f"{field}_{part}", (_H,), _WHOLE, needs=needs) for part in parts)


def biases(rules: Iterable[Rule], needs: str | None = None) -> tuple[Rule, ...]:
    """Return the rules of the biases of matrices: cut where their outputs are, else added once after the sum."""
    found = []
    for rule in rules:
        name, field = (text.removesuffix("weight") + "bias" for text in (rule.name, rule.field))
        decision = _WHOLE if rule.decision is _INPUTS else rule.decision
        found.append(Rule(name, field, (rule.axes[0],), decision, needs=needs))
    return tuple(found)


def model_rules(*, norm_bias: bool = False) -> tuple[Rule, ...]:
    """Return the rules of what lies outside the layers."""
    return (
        Rule("model.embed_tokens.weight", "embedding_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB),
        *norm("model.norm", "final_norm", bias=norm_bias),
        Rule("lm_head.weight", "head_weight", (Axis.VOCAB, _H), Decision.SPLIT_VOCAB, needs="untied_head"),
    )


def table(
    family: str, layer_rules: Iterable[Rule], *, norm_bias: bool = False, expert_rules: tuple[Rule, ...] = ()
) -> FamilyTable:
    """Return the table of a family with these rules for a layer, and for each of its experts."""
    return FamilyTable(
        family=family,
        prefix="",
        layer_prefix="model.layers.{layer}.",
        qkv_layout="stacked",
        rules=model_rules(norm_bias=norm_bias),
        layer_rules=tuple(layer_rules),
        ignored=IGNORED,
        expert_rules=expert_rules,
    )
