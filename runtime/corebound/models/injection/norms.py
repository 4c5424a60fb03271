"""The norms of a block: of its input by the operators, of the heads of q and k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corebound import kernels
from corebound.comm import Collectives
from corebound.models.injection.description import Norm, QkNorm
from corebound.models.injection.taking import NormWeights


class LayerNorm(nn.Module):
    """A layer norm, plain or of a sum."""

    def __init__(self, weights: NormWeights) -> None:
        super().__init__()
        bias = torch.zeros_like(weights.weight) if weights.bias is None else weights.bias
        self.weight = nn.Parameter(weights.weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.eps = weights.eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x.

        Shapes: [T, H] -> [T, H].
        """
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and the sum.

        Shapes: all [T, H].
        """
        return kernels.add_layer_norm(x, residual, self.weight, self.bias, self.eps)


class RmsNorm(nn.Module):
    """An RMS norm, plain or of a sum."""

    def __init__(self, weights: NormWeights) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights.weight, requires_grad=False)
        self.eps = weights.eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x.

        Shapes: [T, H] -> [T, H].
        """
        return kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and the sum.

        Shapes: all [T, H].
        """
        return kernels.add_rms_norm(x, residual, self.weight, self.eps)


BlockNorm = LayerNorm | RmsNorm


def block_norm(kind: Norm, weights: NormWeights | None) -> BlockNorm | None:
    """Return the norm of a branch, or None where there is none."""
    if weights is None:
        return None
    return LayerNorm(weights) if kind == "layer" else RmsNorm(weights)


class HeadNorm(nn.Module):
    """The norm of every head of q, or of k."""

    def __init__(self, kind: QkNorm, weights: NormWeights) -> None:
        super().__init__()
        head_dim = weights.weight.shape[-1]
        self.per_head: nn.Parameter | None = None
        if kind == "layer_per_head":
            # One weight for each head is no operator's: the norm is, and the weights come after it.
            self.per_head = nn.Parameter(weights.weight, requires_grad=False)
            weights = NormWeights(weights.weight.new_ones(head_dim), None, weights.eps)
        self.norm: BlockNorm = RmsNorm(weights) if kind == "rms" else LayerNorm(weights)

    def forward(self, heads: Tensor) -> Tensor:
        """Return the heads, each normalised.

        Shapes: [T, heads, D] -> [T, heads, D].
        """
        out: Tensor = self.norm(heads.flatten(0, 1)).view_as(heads)
        return out if self.per_head is None else out.mul_(self.per_head)


class FullNorm(nn.Module):
    """RMS norms of all q and of all k of a token, with collectives over the heads of every rank; plain torch."""

    def __init__(
        self,
        q: NormWeights,
        k: NormWeights,
        *,
        sizes: tuple[int, int],
        owned: Sequence[bool],
        collectives: Collectives | None,
    ) -> None:
        super().__init__()
        self.q_weight = nn.Parameter(q.weight, requires_grad=False)
        self.k_weight = nn.Parameter(k.weight, requires_grad=False)
        self.eps = q.eps
        self._sizes = torch.tensor(sizes, dtype=torch.float32)
        # A kv head that several ranks hold counts once.
        self._owned = torch.tensor(owned, dtype=torch.float32).view(1, -1, 1)
        self._collectives = collectives

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return q and k normalised over their whole widths.

        Shapes: q [T, Hq, D]; k [T, Hkv, D].
        """
        wide_q, wide_k = q.float(), k.float()
        squares = torch.stack((wide_q.square().sum((1, 2)), (wide_k.square() * self._owned).sum((1, 2))), 1)
        if self._collectives is not None:
            squares = self._collectives.all_reduce(squares)
        scales = torch.rsqrt(squares / self._sizes + self.eps).unsqueeze(2)
        out_q = (wide_q * scales[:, :1]).to(q.dtype) * self.q_weight.view(q.shape[1:])
        return out_q, (wide_k * scales[:, 1:]).to(k.dtype) * self.k_weight.view(k.shape[1:])
