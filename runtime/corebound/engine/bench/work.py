"""How much a model reads and computes for a token, from its architecture."""

from __future__ import annotations

import math
from dataclasses import dataclass

from corebound.models.architecture import Architecture
from corebound.sharding.expected import is_packable
from corebound.sharding.plan import model_parameters

_CACHE_ELEMENT_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Work:
    """The sizes that decide how long a model takes.

    `layer_elements` are the weights of the matrices in all layers that a token goes through, `head_elements` those of
    the head. A batch may read more experts of a step than one token does.
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


def work_of(architecture: Architecture) -> Work:
    """Return the sizes of a model; of experts the part that a token goes through."""
    layers, of_experts, head, embedding = 0, 0, 0, 0
    for parameter in model_parameters(architecture):
        num_elements = math.prod(parameter.shape)
        if parameter.rule.field == "embedding_weight":
            embedding = num_elements
        elif not is_packable(parameter):
            continue
        elif parameter.layer is None:
            head += num_elements
        elif parameter.expert is not None:
            of_experts += num_elements
        else:
            layers += num_elements
    if of_experts:
        layers += of_experts * architecture.num_chosen_experts // architecture.num_experts
    return Work(
        layer_elements=layers,
        head_elements=embedding if architecture.tied_head else head,
        num_layers=architecture.num_layers,
        num_heads=architecture.num_heads,
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
    )
