"""The vocabulary of a family table: for each parameter where it goes, its axes, and how ranks share it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Axis(StrEnum):
    """What one dimension of a parameter counts.

    The fused forms say in which order the rows of several projections lie: PER_HEAD is q, k and v of head 0, then of
    head 1, and so on; PER_GROUP is the queries that read kv head 0, its k and its v, then those of kv head 1 (a rank
    holds its rows STACKED); STACKED is all of the first, then all of the second. POSITION are the rows of a table of
    learned positions. EXPERT are the experts of a layer, of which each has EXPERT_INTERMEDIATE channels within, and the
    one that all tokens share SHARED_INTERMEDIATE; SINGLE is of a matrix with one output.
    """

    HIDDEN = "hidden"
    VOCAB = "vocab"
    QUERY = "query"
    KV = "kv"
    QKV_PER_HEAD = "qkv_per_head"
    QKV_STACKED = "qkv_stacked"
    INTERMEDIATE = "intermediate"
    GATE_UP_STACKED = "gate_up_stacked"
    QKV_PER_GROUP = "qkv_per_group"
    HEAD_DIM = "head_dim"
    POSITION = "position"
    EXPERT = "expert"
    EXPERT_INTERMEDIATE = "expert_intermediate"
    SHARED_INTERMEDIATE = "shared_intermediate"
    SINGLE = "single"


class Decision(StrEnum):
    """How the ranks share a parameter.

    SPLIT_VOCAB, SPLIT_HEADS_OUTPUTS and SPLIT_OUTPUTS cut the first dimension: every rank computes some outputs from
    the whole input. SPLIT_INPUTS cuts the second: every rank holds a part of the inputs, the products are partial
    sums, and one all-reduce follows. REPLICATE gives the whole to everyone.
    """

    SPLIT_VOCAB = "split_vocab"
    SPLIT_HEADS_OUTPUTS = "split_heads_outputs"
    SPLIT_OUTPUTS = "split_outputs"
    SPLIT_INPUTS = "split_inputs"
    REPLICATE = "replicate"


_HEADS = {Axis.QUERY, Axis.KV, Axis.QKV_PER_HEAD, Axis.QKV_STACKED, Axis.QKV_PER_GROUP}
_NEVER_CUT = {Axis.HIDDEN, Axis.HEAD_DIM, Axis.POSITION, Axis.EXPERT, Axis.SINGLE}
_INTERMEDIATE = {Axis.INTERMEDIATE, Axis.EXPERT_INTERMEDIATE, Axis.SHARED_INTERMEDIATE}
_CUT_AXES = {
    Decision.SPLIT_VOCAB: {Axis.VOCAB},
    Decision.SPLIT_HEADS_OUTPUTS: _HEADS,
    Decision.SPLIT_OUTPUTS: {*_INTERMEDIATE, Axis.GATE_UP_STACKED},
    Decision.SPLIT_INPUTS: {Axis.QUERY, *_INTERMEDIATE},
}


@dataclass(frozen=True)
class Rule:
    """One parameter of a checkpoint: `field` of the decoder it belongs to, its axes, and the decision.

    Parameters with the same field are stacked along the first dimension in the order of the table: that is how
    separate q, k and v become one matrix. `needs` names the feature without which the parameter must be absent:
    one of the model, or what a single layer has, `experts` or `one_mlp`.
    """

    name: str
    field: str
    axes: tuple[Axis, ...]
    decision: Decision
    needs: str | None = None

    def __post_init__(self) -> None:
        if self.decision is Decision.REPLICATE:
            assert set(self.axes) <= _NEVER_CUT, f"{self.name}: all ranks hold only what no axis of is cut"
            return
        cut, rest = self.cut_dim, [axis for dim, axis in enumerate(self.axes) if dim != self.cut_dim]
        assert cut < len(self.axes), f"{self.name}: {self.decision} needs a second dimension"
        assert self.axes[cut] in _CUT_AXES[self.decision], f"{self.name}: {self.decision} cannot cut {self.axes[cut]}"
        assert all(axis is Axis.HIDDEN for axis in rest), f"{self.name}: only one dimension may be cut"

    @property
    def cut_dim(self) -> int:
        """Return the dimension that is cut (0 for a replicated parameter, where the whole range is taken)."""
        return 1 if self.decision is Decision.SPLIT_INPUTS else 0


@dataclass(frozen=True, kw_only=True)
class FamilyTable:
    """All parameters of a family.

    `prefix` is one that some checkpoints put before every name and others leave out. `layer_prefix` stands before the
    names of `layer_rules` and holds `{layer}`. `expert_rules` are of each expert of a layer that has some; their names
    hold `{expert}`, and the fields of expert 3 begin with `experts.3.`. `ignored` are regular expressions for whole
    names (prefix removed) that checkpoints carry and no decoder needs. `qkv_layout` is the order of the rows of the
    field `qkv_weight` on a rank, as corebound.kernels.split_qkv takes it.
    """

    family: str
    prefix: str
    layer_prefix: str
    rules: tuple[Rule, ...]
    layer_rules: tuple[Rule, ...]
    ignored: tuple[str, ...]
    qkv_layout: str
    expert_rules: tuple[Rule, ...] = ()

    def is_ignored(self, name: str) -> bool:
        """Return whether a name without prefix is one that no decoder needs."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)
