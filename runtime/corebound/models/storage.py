"""How a rank's weights are stored for the native decoder, and how many bytes that takes. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from corebound.kernels.panel_format import Kind, PanelFormat
from corebound.models.architecture import Architecture
from corebound.quantization.scheme import DEFAULTS, Scheme
from corebound.sharding import ShardPlan

_MATRICES = ("qkv", "attention_out", "mlp_in", "mlp_out")
_PLAIN_BYTES = 2  # of an element outside the panels, bfloat16


@dataclass(frozen=True)
class StoredMatrix:
    """One matrix of products: the field that it is, its shape and how it is stored."""

    field: str
    outputs: int
    inputs: int
    form: PanelFormat

    @property
    def num_bytes(self) -> int:
        """Return its bytes in panels."""
        return self.form.matrix_bytes(self.outputs, self.inputs)

    @property
    def of_expert(self) -> bool:
        """Return whether it is of one expert of several, which only some tokens go through."""
        return ".experts." in self.field

    @property
    def num_weights(self) -> int:
        """Return how many weights it has."""
        return self.outputs * self.inputs


@dataclass(frozen=True)
class RankStorage:
    """What one rank holds: its matrices, embeddings that only lend rows, and the bytes of all small tensors.

    `chosen_part` is the part of a layer's experts that a token goes through.
    """

    matrices: tuple[StoredMatrix, ...]
    embedding_bytes: int
    small_bytes: int
    chosen_part: float = 1.0

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all weights."""
        return self.embedding_bytes + self.small_bytes + sum(matrix.num_bytes for matrix in self.matrices)

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes that a step of one token reads."""
        of_experts = sum(matrix.num_bytes for matrix in self.matrices if matrix.of_expert)
        return self.num_bytes - self.embedding_bytes - of_experts + round(of_experts * self.chosen_part)


def rank_storage(architecture: Architecture, plan: ShardPlan, rank: int, scheme: Scheme | None) -> RankStorage:
    """Return how the weights of a rank are stored where matrices are quantized by `scheme`, or plain."""
    schemes = matrix_schemes(architecture, plan, rank, scheme)
    matrices, embedding, small = [], 0, 0
    for field, shape in plan.field_shapes(rank).items():
        if field in schemes:
            matrices.append(StoredMatrix(field, shape[0], shape[1], panel_format(schemes[field])))
        elif field in ("embedding_weight", "position_embedding_weight"):
            embedding += math.prod(shape) * _PLAIN_BYTES
        else:
            small += math.prod(shape) * _PLAIN_BYTES
    chosen_part = architecture.num_chosen_experts / architecture.num_experts if architecture.num_experts else 1.0
    return RankStorage(tuple(matrices), embedding, small, chosen_part)


def matrix_schemes(
    architecture: Architecture, plan: ShardPlan, rank: int, scheme: Scheme | None
) -> dict[str, Scheme | None]:
    """Return the fields that are matrices of products, each with the scheme that it is quantized by, if any.

    A tied embedding stays plain, because rows are looked up in it.
    """
    schemes: dict[str, Scheme | None] = {}
    for field in plan.field_shapes(rank):
        name = field.rpartition(".")[2]
        if name.removesuffix("_weight") in _MATRICES:
            schemes[field] = scheme
        elif name == "router_weight":
            schemes[field] = None  # rounding it would turn choices between experts
        elif name == "head_weight":
            schemes[field] = head_scheme(scheme)
        elif name == "embedding_weight" and architecture.tied_head:
            schemes[field] = None
    return schemes


def panel_format(scheme: Scheme | None) -> PanelFormat:
    """Return how a matrix is stored that is quantized by `scheme`, or plain where there is none."""
    if scheme is None:
        return PanelFormat()
    kind: Kind = "int8" if scheme.bits == 8 else "int4"
    return PanelFormat(kind=kind, group_size=scheme.group_size, asymmetric=not scheme.symmetric)


def head_scheme(scheme: Scheme | None) -> Scheme | None:
    """Return the scheme of an untied head: its errors reach the logits directly, so it never has less than 8 bits."""
    return DEFAULTS["int8"] if scheme is not None and scheme.bits < 8 else scheme
