"""How much a model reads and computes for a token, from its checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

from corebound.models.description import ModelDescription

_CACHE_ELEMENT_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Work:
    """The sizes that decide how long a model takes.

    `layer_elements` are the weights of the matrices in all layers, `head_elements` those of the head.
    """

    layer_elements: int
    head_elements: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def weight_bytes(self, bits_per_weight: float) -> int:
        """Return what a step reads of the weights: every matrix once, and of the embedding next to nothing."""
        return round((self.layer_elements + self.head_elements) * bits_per_weight / 8)

    def cache_bytes(self, context: float, batch_size: int) -> int:
        """Return what a step reads of a 16-bit cache when each sequence has `context` tokens."""
        per_token = 2 * self.num_layers * self.num_kv_heads * self.head_dim * _CACHE_ELEMENT_BYTES
        return round(per_token * context * batch_size)

    def prefill_flop(self, num_tokens: int, batch_size: int) -> int:
        """Return the operations of a prefill, a multiply-add as two: the head once a prompt, attention causal."""
        linear = 2 * self.layer_elements * num_tokens + 2 * self.head_elements
        attention = 2 * 2 * self.num_layers * self.num_heads * self.head_dim * num_tokens * (num_tokens + 1) // 2
        return batch_size * (linear + attention)


def work_of(description: ModelDescription) -> Work:
    """Return the sizes of a model."""
    vocabulary, layers = [], 0
    for entry in description.entries.values():
        if len(entry.shape) != 2:
            continue
        if entry.shape[0] == description.vocab_size:
            vocabulary.append(math.prod(entry.shape))
        else:
            layers += math.prod(entry.shape)
    return Work(
        layer_elements=layers,
        head_elements=max(vocabulary),
        num_layers=description.num_layers,
        num_heads=description.num_heads,
        num_kv_heads=description.num_kv_heads,
        head_dim=description.head_dim,
    )
