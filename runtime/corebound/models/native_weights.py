"""The weights of a rank for the native decoder: matrices in panels, and the small tensors beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from corebound.kernels.panel_format import PanelFormat
from corebound.kernels.panels import PanelMatrix
from corebound.models.description import ModelDescription
from corebound.sharding import ShardPlan
from corebound.sharding.arena import allocate


@dataclass(frozen=True, kw_only=True)
class NativeExperts:
    """The experts of a layer, each with its matrices before and after the activation; the shared one comes last."""

    router: PanelMatrix
    experts: tuple[tuple[PanelMatrix, PanelMatrix], ...]
    shared: tuple[tuple[PanelMatrix, PanelMatrix], ...]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all matrices."""
        return self.bytes_per_token(len(self.experts))

    def bytes_per_token(self, num_chosen: int) -> int:
        """Return the bytes that one token reads of them; experts are of equal size."""
        others = self.router.num_bytes + sum(matrix.num_bytes for pair in self.shared for matrix in pair)
        every = sum(matrix.num_bytes for pair in self.experts for matrix in pair)
        return others + every // len(self.experts) * num_chosen


@dataclass(frozen=True, kw_only=True)
class NativeLayer:
    """One layer. A norm is its weight, or weight and bias; what is absent is None.

    Where `mlp_norm` is empty the MLP reads what the attention reads. A layer has matrices of one MLP, or `experts`.
    """

    attention_norm: tuple[Tensor, ...]
    mlp_norm: tuple[Tensor, ...]
    qkv: PanelMatrix
    attention_out: PanelMatrix
    mlp_in: PanelMatrix | None
    mlp_out: PanelMatrix | None
    qkv_bias: Tensor | None
    attention_out_bias: Tensor | None
    mlp_in_bias: Tensor | None
    mlp_out_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    experts: NativeExperts | None

    def matrices(self) -> tuple[PanelMatrix, ...]:
        """Return the matrices that every token reads, in the order of a step, without those of experts."""
        mlp = () if self.mlp_in is None or self.mlp_out is None else (self.mlp_in, self.mlp_out)
        return (self.qkv, self.attention_out, *mlp)

    def biases(self) -> tuple[Tensor | None, ...]:
        """Return the biases in the order of a step, each [outputs of its matrix]."""
        return (self.qkv_bias, self.attention_out_bias, self.mlp_in_bias, self.mlp_out_bias)

    def norms(self) -> tuple[Tensor, ...]:
        """Return the tensors of all norms: [H] of the stream, [D] of heads."""
        of_heads = tuple(weight for weight in (self.q_norm, self.k_norm) if weight is not None)
        return (*self.attention_norm, *self.mlp_norm, *of_heads)


@dataclass(frozen=True, kw_only=True)
class NativeWeights:
    """All weights of a rank. `embedding` is None where the panels of the head serve for it."""

    embedding: Tensor | None
    embedding_norm: tuple[Tensor, ...]
    layers: tuple[NativeLayer, ...]
    final_norm: tuple[Tensor, ...]
    head: PanelMatrix
    head_bias: Tensor | None
    position_embedding: Tensor | None

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all matrices and of the embeddings; norms and biases have few."""
        tables = sum(table.nbytes for table in (self.embedding, self.position_embedding) if table is not None)
        matrices = sum(matrix.num_bytes for layer in self.layers for matrix in layer.matrices())
        experts = sum(layer.experts.num_bytes for layer in self.layers if layer.experts is not None)
        return tables + self.head.num_bytes + matrices + experts


def panel_matrices(
    description: ModelDescription, plan: ShardPlan, rank: int, forms: Mapping[str, PanelFormat]
) -> dict[str, PanelMatrix]:
    """Return the matrices of a rank by field, each in its format and still without memory."""
    shapes = plan.field_shapes(rank)
    matrices: dict[str, PanelMatrix] = {}
    for field, form in forms.items():
        gated = field.endswith("mlp_in_weight") and description.gated
        matrices[field] = PanelMatrix(shapes[field][0], shapes[field][1], form, gated=gated)
    return matrices


def place_matrices(matrices: Mapping[str, PanelMatrix]) -> dict[str, Tensor]:
    """Give the matrices memory of their own, and return it by field."""
    memory = allocate({field: (matrix.num_bytes,) for field, matrix in matrices.items()}, torch.uint8)
    for field, matrix in matrices.items():
        matrix.place(memory[field])
    return memory


def arrange_native(
    matrices: Mapping[str, PanelMatrix], fields: Mapping[str, Tensor], num_layers: int, num_experts: int = 0
) -> NativeWeights:
    """Return the weights of a rank, given by the field names of the family tables."""

    def norm(prefix: str) -> tuple[Tensor, ...]:
        return tuple(fields[name] for name in (f"{prefix}_weight", f"{prefix}_bias") if name in fields)

    def layer(prefix: str) -> NativeLayer:
        return NativeLayer(
            attention_norm=norm(f"{prefix}attention_norm"),
            mlp_norm=norm(f"{prefix}mlp_norm"),
            qkv=matrices[f"{prefix}qkv_weight"],
            attention_out=matrices[f"{prefix}attention_out_weight"],
            mlp_in=matrices.get(f"{prefix}mlp_in_weight"),
            mlp_out=matrices.get(f"{prefix}mlp_out_weight"),
            qkv_bias=fields.get(f"{prefix}qkv_bias"),
            attention_out_bias=fields.get(f"{prefix}attention_out_bias"),
            mlp_in_bias=fields.get(f"{prefix}mlp_in_bias"),
            mlp_out_bias=fields.get(f"{prefix}mlp_out_bias"),
            q_norm=fields.get(f"{prefix}q_norm_weight"),
            k_norm=fields.get(f"{prefix}k_norm_weight"),
            experts=_experts(matrices, prefix, num_experts),
        )

    return NativeWeights(
        embedding=fields.get("embedding_weight"),
        embedding_norm=norm("embedding_norm"),
        layers=tuple(layer(f"layers.{index}.") for index in range(num_layers)),
        final_norm=norm("final_norm"),
        head=matrices["head_weight"] if "head_weight" in matrices else matrices["embedding_weight"],
        head_bias=fields.get("head_bias"),
        position_embedding=fields.get("position_embedding_weight"),
    )


def _experts(matrices: Mapping[str, PanelMatrix], prefix: str, num_experts: int) -> NativeExperts | None:
    router = matrices.get(f"{prefix}router_weight")
    if router is None:
        return None

    def mlp(of: str) -> tuple[PanelMatrix, PanelMatrix]:
        return matrices[f"{prefix}{of}.mlp_in_weight"], matrices[f"{prefix}{of}.mlp_out_weight"]

    return NativeExperts(
        router=router,
        experts=tuple(mlp(f"experts.{expert}") for expert in range(num_experts)),
        shared=(mlp("shared"),) if f"{prefix}shared.mlp_in_weight" in matrices else (),
    )
