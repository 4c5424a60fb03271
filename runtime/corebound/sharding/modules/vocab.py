"""The embedding and the head, split by words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corebound.comm import Collectives
from corebound.sharding.modules.layers import product


class VocabEmbedding(nn.Module):
    """An embedding of which this rank holds the rows of some words; a sum over the ranks completes it."""

    embed_scale: Tensor | None

    def __init__(
        self, weight: nn.Parameter, words: range, num_words: int, collectives: Collectives, scale: Tensor | None = None
    ) -> None:
        super().__init__()
        self.weight = weight
        self.words = words
        self.num_embeddings, self.embedding_dim = num_words, weight.shape[1]
        self.collectives = collectives
        self.register_buffer("embed_scale", scale, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the words, identical on every rank.

        Shapes: input [...] of word numbers; result [..., H].
        """
        local = input - self.words.start
        elsewhere = (local < 0) | (local >= len(self.words))
        rows = nn.functional.embedding(local.masked_fill(elsewhere, 0), self.weight)
        rows = self.collectives.all_reduce(rows.masked_fill(elsewhere.unsqueeze(-1), 0))
        return rows if self.embed_scale is None else rows * self.embed_scale.to(rows.dtype)


class VocabHead(nn.Module):
    """A head of which this rank holds the rows of some words; the logits of all ranks are gathered."""

    bias: nn.Parameter | None

    def __init__(
        self, weight: nn.Parameter, bias: Tensor | None, parts: Sequence[range], collectives: Collectives
    ) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self.parts = tuple(parts)
        self.in_features, self.out_features = weight.shape[1], parts[-1].stop
        self.collectives = collectives

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits of all words, identical on every rank.

        Shapes: input [..., H]; result [..., V].
        """
        local = product(input, self.weight, self.bias)
        if self.collectives.size == 1:
            return local
        widest = max(len(part) for part in self.parts)
        gathered = self.collectives.all_gather(nn.functional.pad(local, (0, widest - local.shape[-1])))
        return torch.cat([gathered[rank, ..., : len(part)] for rank, part in enumerate(self.parts)], dim=-1)
