"""The one decoder: every family is this loop with other choices.

Letters: T tokens, H hidden size, R rows with logits, V words of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from corebound import kernels
from corebound.comm import Collectives
from corebound.models.batch import StepBatch
from corebound.models.description import ModelDescription
from corebound.models.rope import RotaryTable
from corebound.models.weights import DecoderWeights, LayerWeights
from corebound.sharding import ShardPlan, alibi_slopes

KvCache = Sequence[tuple[Tensor, Tensor]]

# Per kind of norm the plain operator and the one that adds the residual first.
_NORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]] = {
    "layer": (kernels.layer_norm, kernels.add_layer_norm),
    "rms": (kernels.rms_norm, kernels.add_rms_norm),
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: kernels.gelu(x, "tanh"),
    "silu_gated": kernels.silu_mul,
}


class Decoder:
    """A rank's part of a model. All ranks call forward with equal batches; two all-reduces a layer join their parts."""

    def __init__(
        self, description: ModelDescription, plan: ShardPlan, weights: DecoderWeights, collectives: Collectives
    ) -> None:
        self.description = description
        self.weights = weights
        self.dtype: torch.dtype = weights.embedding.dtype
        self._collectives = collectives
        share = plan.shares[collectives.rank]
        self.num_layers = description.num_layers
        self.num_heads = len(share.query_heads)
        self.num_kv_heads = len(share.kv_heads)
        self.head_dim = description.head_dim
        self.vocab_start, self.vocab_stop = share.vocab.start, share.vocab.stop
        self._qkv_layout = plan.table.qkv_layout
        self._scale = description.head_dim**-0.5
        self._norm, self._add_norm = _NORMS[description.norm]
        self._activation = _ACTIVATIONS[description.activation]
        self._rotary = RotaryTable(description.rope, description.head_dim) if description.rope else None
        self._kv_heads = None if share.even_groups else torch.tensor(share.kv_head_map, dtype=torch.int32)
        self._slopes: Tensor | None = None
        if description.rope is None:
            slopes = alibi_slopes(description.num_heads)
            self._slopes = torch.tensor(slopes[share.query_heads.start : share.query_heads.stop], dtype=torch.float32)

    @property
    def weight_bytes_per_token(self) -> int:
        """Return the bytes of weights that this rank reads to compute one token of one sequence."""
        weights = self.weights
        tensors = [*weights.embedding_norm, *weights.final_norm, weights.head]
        for layer in weights.layers:
            for value in vars(layer).values():
                tensors += value if isinstance(value, tuple) else [] if value is None else [value]
        return sum(tensor.nbytes for tensor in tensors)

    @torch.inference_mode()
    def forward(self, batch: StepBatch, kv_cache: KvCache) -> Tensor:
        """Return the logits of this rank's words for the rows that the batch asks for, and store all keys and values.

        Shapes: `kv_cache` holds, per layer, keys and values [num_blocks, Hkv of this rank, block_size, D]; the result
        is [R, V] float32, words vocab_start to vocab_stop.
        """
        angles = None
        if self._rotary is not None:
            angles = self._rotary.up_to(int(batch.context_lengths.max()))
        x = self._embed(batch.token_ids)
        residual: Tensor | None = None
        last = self.num_layers - 1
        for index, layer in enumerate(self.weights.layers):
            normed, residual = self._normalise(x, residual, layer.attention_norm)
            attended = self._attend(layer, normed, batch, kv_cache[index], angles)
            if index == last:
                # The other tokens have left their keys and values: nothing after this reads them.
                attended, residual = attended[batch.logits_rows], residual[batch.logits_rows]
            x = self._reduce(kernels.linear(attended, layer.attention_out_weight), layer.attention_out_bias)
            normed, residual = self._normalise(x, residual, layer.mlp_norm)
            inner = self._activation(kernels.linear(normed, layer.mlp_in_weight, layer.mlp_in_bias))
            x = self._reduce(kernels.linear(inner, layer.mlp_out_weight), layer.mlp_out_bias)
        normed, _ = self._normalise(x, residual, self.weights.final_norm)
        return kernels.linear(normed, self.weights.head).float()

    def _embed(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings: each word's row lies on one rank, so the sum with the others' zeros is exact."""
        table = self.weights.embedding
        if self._collectives.size == 1:
            x = table[token_ids]
        else:
            local = token_ids - self.vocab_start
            foreign = (local < 0) | (local >= table.shape[0])
            x = table[local.masked_fill_(foreign, 0)].masked_fill_(foreign.unsqueeze(1), 0)
            x = self._collectives.all_reduce(x)
        norm = self.weights.embedding_norm
        return self._norm(x, *norm, self.description.norm_eps) if norm else x

    def _normalise(self, x: Tensor, residual: Tensor | None, norm: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the norm of the stream after adding x to it, and the stream."""
        eps = self.description.norm_eps
        if residual is None:
            normed, stream = self._norm(x, *norm, eps), x
        else:
            normed, stream = self._add_norm(x, residual, *norm, eps)
        return normed, normed if self.description.norm_as_residual else stream

    def _attend(
        self,
        layer: LayerWeights,
        x: Tensor,
        batch: StepBatch,
        cache: tuple[Tensor, Tensor],
        angles: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Return the attention of this rank's heads, side by side.

        Shapes: x [T, H]; result [T, heads of this rank * D].
        """
        qkv = kernels.linear(x, layer.qkv_weight, layer.qkv_bias)
        q, k, v = kernels.split_qkv(qkv, self._qkv_layout, self.num_heads, self.num_kv_heads, self.head_dim)
        if angles is not None:
            q, k = kernels.rotary(q, k, batch.positions, *angles)
        keys, values = cache
        kernels.store_kv(k, v, keys, values, batch.slots)
        out = kernels.attention(
            q,
            keys,
            values,
            batch.block_tables,
            batch.query_starts,
            batch.context_lengths,
            self._scale,
            self._slopes,
            self._kv_heads,
        )
        return out.flatten(1)

    def _reduce(self, partial: Tensor, bias: Tensor | None) -> Tensor:
        """Return the sum of all ranks' products plus the bias, which is added here so that it counts once."""
        x = self._collectives.all_reduce(partial)
        return x if bias is None else x.add_(bias)
