"""The norms of a block: of its input by the operators, of the heads of q and k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corebound import kernels
from corebound.comm import Collectives
from corebound.models.injection.description import Norm, QkNorm
from corebound.models.injection.taking import NormWeights


class BlockNorm(nn.Module):
    """A layer norm or RMS norm, plain or of a sum."""

    def __init__(self, kind: Norm, weights: NormWeights) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights.weight, requires_grad=False)
        self.register_parameter(
            "bias", None if weights.bias is None else nn.Parameter(weights.bias, requires_grad=False)
        )
        self.eps = weights.eps
        self.is_layer_norm = kind == "layer"

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x.

        Shapes: [T, H] -> [T, H].
        """
        if self.is_layer_norm:
            return kernels.layer_norm(x, self.weight, self.bias, self.eps)
        return kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and the sum.

        Shapes: all [T, H].
        """
        if self.is_layer_norm:
            return kernels.add_layer_norm(x, residual, self.weight, self.bias, self.eps)
        return kernels.add_rms_norm(x, residual, self.weight, self.eps)


class HeadNorm(nn.Module):
    """The norm of every head of q, or of k."""

    def __init__(self, kind: QkNorm, weights: NormWeights) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights.weight, requires_grad=False)
        self.register_parameter(
            "bias", None if weights.bias is None else nn.Parameter(weights.bias, requires_grad=False)
        )
        self.eps = weights.eps
        self.kind = kind

    def forward(self, heads: Tensor) -> Tensor:
        """Return the heads, each normalised.

        Shapes: [T, heads, D] -> [T, heads, D].
        """
        rows = heads.flatten(0, 1)
        if self.kind == "rms":
            out = kernels.rms_norm(rows, self.weight, self.eps)
        elif self.kind == "layer":
            bias = torch.zeros_like(self.weight) if self.bias is None else self.bias
            out = kernels.layer_norm(rows, self.weight, bias, self.eps)
        else:
            # One weight for each head is no operator's: the norm is, and the weights come after it.
            one = torch.ones(heads.shape[2], dtype=heads.dtype)
            out = kernels.layer_norm(rows, one, torch.zeros_like(one), self.eps)
            return out.view_as(heads) * self.weight
        return out.view_as(heads)


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
