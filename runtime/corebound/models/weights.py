"""The tensors of a decoder on one rank, arranged for its loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from corebound.models.experts import ExpertWeights


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """The tensors of one layer. A norm is its weight, or weight and bias; what is absent is None.

    Where `mlp_norm` is empty the MLP reads what the attention reads. A layer has matrices of one MLP, or `experts`.
    """

    attention_norm: tuple[Tensor, ...]
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    attention_out_weight: Tensor
    attention_out_bias: Tensor | None
    mlp_norm: tuple[Tensor, ...]
    mlp_in_weight: Tensor | None
    mlp_in_bias: Tensor | None
    mlp_out_weight: Tensor | None
    mlp_out_bias: Tensor | None
    q_norm_weight: Tensor | None
    k_norm_weight: Tensor | None
    experts: ExpertWeights | None


@dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """All tensors of a rank. With a tied head `head` is the embedding tensor itself."""

    embedding: Tensor
    embedding_norm: tuple[Tensor, ...]
    layers: tuple[LayerWeights, ...]
    final_norm: tuple[Tensor, ...]
    head: Tensor
    head_bias: Tensor | None
    position_embedding: Tensor | None


def add_to_norms(fields: Mapping[str, Tensor], offset: float) -> dict[str, Tensor]:
    """Return the tensors with `offset` added to the weights of norms, in float32, which the sums then are in."""
    if not offset:
        return dict(fields)
    return {
        name: tensor.float() + offset if name.endswith("norm_weight") else tensor for name, tensor in fields.items()
    }


def arrange(fields: Mapping[str, Tensor], num_layers: int, num_experts: int = 0) -> DecoderWeights:
    """Return the tensors of a rank, given by the field names of the family tables."""

    def norm(prefix: str) -> tuple[Tensor, ...]:
        return tuple(fields[name] for name in (f"{prefix}_weight", f"{prefix}_bias") if name in fields)

    def layer(prefix: str) -> LayerWeights:
        return LayerWeights(
            attention_norm=norm(f"{prefix}attention_norm"),
            qkv_weight=fields[f"{prefix}qkv_weight"],
            qkv_bias=fields.get(f"{prefix}qkv_bias"),
            attention_out_weight=fields[f"{prefix}attention_out_weight"],
            attention_out_bias=fields.get(f"{prefix}attention_out_bias"),
            mlp_norm=norm(f"{prefix}mlp_norm"),
            mlp_in_weight=fields.get(f"{prefix}mlp_in_weight"),
            mlp_in_bias=fields.get(f"{prefix}mlp_in_bias"),
            mlp_out_weight=fields.get(f"{prefix}mlp_out_weight"),
            mlp_out_bias=fields.get(f"{prefix}mlp_out_bias"),
            q_norm_weight=fields.get(f"{prefix}q_norm_weight"),
            k_norm_weight=fields.get(f"{prefix}k_norm_weight"),
            experts=_experts(fields, prefix, num_experts),
        )

    embedding = fields["embedding_weight"]
    return DecoderWeights(
        embedding=embedding,
        embedding_norm=norm("embedding_norm"),
        layers=tuple(layer(f"layers.{index}.") for index in range(num_layers)),
        final_norm=norm("final_norm"),
        head=fields.get("head_weight", embedding),
        head_bias=fields.get("head_bias"),
        position_embedding=fields.get("position_embedding_weight"),
    )


def _experts(fields: Mapping[str, Tensor], prefix: str, num_experts: int) -> ExpertWeights | None:
    if f"{prefix}router_weight" not in fields:
        return None

    def mlp(of: str) -> tuple[Tensor, Tensor]:
        return fields[f"{prefix}{of}.mlp_in_weight"], fields[f"{prefix}{of}.mlp_out_weight"]

    return ExpertWeights(
        router=fields[f"{prefix}router_weight"],
        experts=tuple(mlp(f"experts.{expert}") for expert in range(num_experts)),
        shared=mlp("shared") if f"{prefix}shared.mlp_in_weight" in fields else None,
    )
