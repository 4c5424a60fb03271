"""Layers with experts by plain operators: a router scores all, and each token goes through the best few.

Letters: T tokens, H hidden size, E experts, C chosen ones, I channels within an expert on this rank.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from corebound import kernels
from corebound.comm import Collectives
from corebound.errors import ModelError

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ExpertWeights:
    """The tensors of a layer's experts. With a `shared` one the last row of the router is its own score.

    Shapes: router [E, H] or [E + 1, H]; of an expert [2 I, H] and [H, I].
    """

    router: Tensor
    experts: tuple[tuple[Tensor, Tensor], ...]
    shared: tuple[Tensor, Tensor] | None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors: the router, pairs of each expert, and the shared pair; shapes as the fields."""
        return (self.router, *(tensor for pair in self.experts for tensor in pair), *(self.shared or ()))

    def bytes_per_token(self, num_chosen: int) -> int:
        """Return the bytes that one token reads; experts are of equal size."""
        all_experts = sum(tensor.nbytes for pair in self.experts for tensor in pair)
        others = self.router.nbytes + sum(tensor.nbytes for tensor in self.shared or ())
        return others + all_experts // len(self.experts) * num_chosen


def require_one_variant(name: str, arithmetic: str, collectives: Collectives) -> None:
    """Check that all ranks compute what a model's routers score with the same arithmetic. All ranks call it.

    Every rank chooses for itself. Where two experts are nearly as good, other roundings are another choice, and then
    the ranks would add up parts of different experts.

    Raises: ModelError that says what each rank has.
    """
    mine = (arithmetic, socket.gethostname())
    everyone = [collectives.broadcast_object(mine, root=rank) for rank in range(collectives.size)]
    if len({found for found, _ in everyone}) > 1:
        ranks = zip(collectives.ranks, everyone, strict=True)
        found = ", ".join(f"rank {rank} on {host}: {variant}" for rank, (variant, host) in ranks)
        raise ModelError(
            f"{name}: experts: expected the same variant of kernels on all ranks, which else choose different experts "
            f"where two are nearly as good; found {found}",
            hint="set COREBOUND_ISA for all ranks to a variant that every host has; `corebound doctor` lists them",
        )


def route(scores: Tensor, num_chosen: int, *, renormalised: bool) -> tuple[Tensor, Tensor]:
    """Return the weights of the chosen experts of each token, and which they are.

    They are the best of a softmax over all experts; `renormalised` weights of a token add up to one.

    Shapes: scores [T, E] float32; weights [T, C] float32; experts [T, C] int64.
    """
    weights, experts = torch.softmax(scores, dim=-1).topk(num_chosen, dim=-1)
    return (weights / weights.sum(dim=-1, keepdim=True) if renormalised else weights), experts


def mix_experts(
    x: Tensor, weights: ExpertWeights, activation: Activation, num_chosen: int, *, renormalised: bool
) -> Tensor:
    """Return this rank's part of a layer's experts.

    Scores, weights and sums are of float32, so that rounding seldom turns a choice between two experts. What a token's
    experts give is added in the order of the experts.

    Shapes: [T, H] -> [T, H].
    """
    scores = kernels.linear(x.float(), weights.router.float())
    shares, chosen = route(scores[:, : len(weights.experts)], num_chosen, renormalised=renormalised)
    total = torch.zeros(x.shape, dtype=torch.float32)
    for expert in chosen.unique().tolist():
        rows, places = (chosen == expert).nonzero(as_tuple=True)
        part = _one(x[rows], weights.experts[expert], activation).float()
        total.index_add_(0, rows, part.mul_(shares[rows, places].unsqueeze(1)))
    if weights.shared is not None:
        total.add_(_one(x, weights.shared, activation).float().mul_(torch.sigmoid(scores[:, -1:])))
    return total.to(x.dtype)


def _one(x: Tensor, weights: tuple[Tensor, Tensor], activation: Activation) -> Tensor:
    return kernels.linear(activation(kernels.linear(x, weights[0])), weights[1])
