"""The sizes of a model that decide how it can be split."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes and optional parts of one model, whole, before any split.

    `family` names the table in corebound.sharding.families. `features` are the optional groups of parameters that
    this model has, by the names its table uses, such as `attention_bias` or `untied_head`. `input_grain` is the number
    of neighbouring inputs of a matrix that one rank must hold together, because they share a scale.
    `num_positions` are the rows of a table of learned positions, 0 where there is none.

    With `num_experts` every layer but the `dense_layers` has so many MLPs of `expert_size` in place of one of
    `intermediate_size`, and, where `shared_expert_size` is not 0, one more for all tokens.
    """

    name: str
    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    features: frozenset[str] = frozenset()
    input_grain: int = 1
    num_positions: int = 0
    num_experts: int = 0
    expert_size: int = 0
    shared_expert_size: int = 0
    dense_layers: frozenset[int] = frozenset()

    def has_experts(self, layer: int) -> bool:
        """Return whether a layer has experts in place of one MLP."""
        return self.num_experts > 0 and layer not in self.dense_layers
