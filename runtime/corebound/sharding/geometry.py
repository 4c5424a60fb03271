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
