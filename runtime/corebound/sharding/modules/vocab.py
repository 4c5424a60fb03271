"""The embedding, split by words. The head, split by words too, is a GatheredLinear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corebound.comm import Collectives
from corebound.errors import RequestError


class VocabEmbedding(nn.Module):
    """An embedding of which this rank holds the rows of some words; a sum over the ranks completes it."""

    def __init__(
        self, weight: nn.Parameter, words: range, num_words: int, collectives: Collectives, scale: float | None = None
    ) -> None:
        super().__init__()
        self.weight = weight
        self.words = words
        self.num_embeddings, self.embedding_dim = num_words, weight.shape[1]
        self.collectives = collectives
        self.embed_scale = scale

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the words, identical on every rank.

        Shapes: input [...] of word numbers; result [..., H].

        Raises: RequestError for a number that is no word.
        """
        if not torch.compiler.is_compiling() and input.numel():
            low, high = (int(value) for value in torch.aminmax(input))
            if low < 0 or high >= self.num_embeddings:
                found = low if low < 0 else high
                raise RequestError(f"word {found} is not in a vocabulary of {self.num_embeddings} words")
        local = input - self.words.start
        elsewhere = (local < 0) | (local >= len(self.words))
        rows = nn.functional.embedding(local.masked_fill(elsewhere, 0), self.weight)
        rows = self.collectives.all_reduce(rows.masked_fill(elsewhere.unsqueeze(-1), 0))
        if self.embed_scale is None:
            return rows
        # Rounded to the type of the rows first, as models that scale their embedding were trained.
        return rows * torch.tensor(self.embed_scale, dtype=rows.dtype)
