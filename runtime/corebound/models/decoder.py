"""The one decoder: every family is this loop with other choices.

Letters: T tokens, H hidden size, R rows with logits, V words of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from corebound import kernels
from corebound.comm import Collectives
from corebound.models.batch import BestWords, GreedySteps, StepBatch
from corebound.models.description import ModelDescription
from corebound.models.experts import mix_experts, require_one_variant
from corebound.models.rope import RotaryTable
from corebound.models.weights import DecoderWeights, LayerWeights
from corebound.sharding import ShardPlan, alibi_slopes

KvCache = Sequence[tuple[Tensor, Tensor]]

# Per kind of norm the plain operator and the one that adds the residual first.
_NORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]] = {
    "layer": (kernels.layer_norm, kernels.add_layer_norm),
    "rms": (kernels.rms_norm, kernels.add_rms_norm),
}


def _gelu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return kernels.gelu(gate.contiguous(), "tanh") * up


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: kernels.gelu(x, "tanh"),
    "gelu_erf": lambda x: kernels.gelu(x, "none"),
    "relu": torch.relu,
    "silu_gated": kernels.silu_mul,
    "gelu_tanh_gated": _gelu_mul,
}


class Decoder:
    """A rank's part of a model. All ranks call forward with equal batches; two all-reduces a layer join their parts.

    Layers with a parallel residual need one.

    Raises: ModelError for a model with experts on ranks that do not compute with the same variant.
    """

    def __init__(
        self, description: ModelDescription, plan: ShardPlan, weights: DecoderWeights, collectives: Collectives
    ) -> None:
        if description.num_experts and collectives.size > 1:
            variants = sorted({row["variant"] for row in kernels.running_table()})
            # Plain operators, and some inside the others, are torch's, whose capability is its variant.
            arithmetic = f"{' and '.join(variants)} operators with torch for {torch.backends.cpu.get_cpu_capability()}"
            require_one_variant(description.name, arithmetic, collectives)
        self.description = description
        self.weights = weights
        self.dtype: torch.dtype = weights.embedding.dtype
        self._collectives = collectives
        share = plan.shares[collectives.rank]
        self.greedy_steps: GreedySteps | None = None
        self.best_words: BestWords | None = None  # torch looks for them where they are asked for
        self.num_layers = description.num_layers
        self.num_heads = len(share.query_heads)
        self.num_kv_heads = len(share.kv_heads)
        self.head_dim = description.head_dim
        self.vocab_start, self.vocab_stop = share.vocab.start, share.vocab.stop
        self._qkv_layout = plan.table.qkv_layout
        self._scale = description.score_scale
        self._norm, self._add_norm = _NORMS[description.norm]
        self._activation = _ACTIVATIONS[description.activation]
        self._rotary = RotaryTable(description.rope, description.head_dim) if description.rope else None
        self._interleaved = description.rope is not None and description.rope.interleaved
        self._kv_heads = None if share.even_groups else torch.tensor(share.kv_head_map, dtype=torch.int32)
        self._slopes: Tensor | None = None
        if description.alibi:
            slopes = alibi_slopes(description.num_heads)
            self._slopes = torch.tensor(slopes[share.query_heads.start : share.query_heads.stop], dtype=torch.float32)

    @property
    def weight_bytes_per_token(self) -> int:
        """Return the bytes of weights that this rank reads to compute one token of one sequence."""
        weights = self.weights
        tensors = [*weights.embedding_norm, *weights.final_norm, weights.head]
        tensors += [] if weights.head_bias is None else [weights.head_bias]
        for layer in weights.layers:
            for value in vars(layer).values():
                tensors += value if isinstance(value, tuple) else [value] if isinstance(value, Tensor) else []
        num_chosen = self.description.num_chosen_experts
        experts = sum(layer.experts.bytes_per_token(num_chosen) for layer in weights.layers if layer.experts)
        return experts + sum(tensor.nbytes for tensor in tensors)

    @torch.inference_mode()
    def forward(self, batch: StepBatch, kv_cache: KvCache) -> Tensor:
        """Return the logits of this rank's words for the rows that the batch asks for, and store all keys and values.

        Shapes: `kv_cache` holds, per layer, keys and values [num_blocks, Hkv of this rank, block_size, D]; the result
        is [R, V] float32, words vocab_start to vocab_stop.
        """
        angles = None
        if self._rotary is not None:
            angles = self._rotary.up_to(batch.longest_context)
        x = self._embed(batch)
        residual: Tensor | None = None
        last = self.num_layers - 1
        for index, layer in enumerate(self.weights.layers):
            normed, residual = self._normalise(x, residual, layer.attention_norm)
            attended = self._attend(index, normed, batch, kv_cache[index], angles)
            if index == last:
                # The other tokens have left their keys and values: nothing after this reads them.
                attended, residual = attended[batch.logits_rows], residual[batch.logits_rows]
                normed = normed[batch.logits_rows]
            partial = kernels.linear(attended, layer.attention_out_weight)
            if self.description.parallel_residual:
                if layer.mlp_norm:
                    normed, residual = self._normalise(residual, None, layer.mlp_norm)
                x = self._reduce(partial.add_(self._mlp(layer, normed)), layer.attention_out_bias, layer.mlp_out_bias)
            else:
                x = self._reduce(partial, layer.attention_out_bias)
                normed, residual = self._normalise(x, residual, layer.mlp_norm)
                x = self._reduce(self._mlp(layer, normed), layer.mlp_out_bias)
        normed, _ = self._normalise(x, residual, self.weights.final_norm)
        logits = kernels.linear(normed, self.weights.head, self.weights.head_bias).float()
        return logits if self.description.logits_divisor == 1.0 else logits.div_(self.description.logits_divisor)

    def _mlp(self, layer: LayerWeights, x: Tensor) -> Tensor:
        """Return this rank's part of the MLP, without the bias at its end."""
        if layer.experts is not None:
            return mix_experts(
                x,
                layer.experts,
                self._activation,
                self.description.num_chosen_experts,
                renormalised=self.description.renormalised_experts,
            )
        assert layer.mlp_in_weight is not None and layer.mlp_out_weight is not None, "a layer has one MLP or experts"
        inner = self._activation(kernels.linear(x, layer.mlp_in_weight, layer.mlp_in_bias))
        return kernels.linear(inner, layer.mlp_out_weight)

    def _embed(self, batch: StepBatch) -> Tensor:
        """Return the embeddings: each word's row lies on one rank, so the sum with the others' zeros is exact."""
        table, places = self.weights.embedding, self.weights.position_embedding
        if self._collectives.size == 1:
            x = table[batch.token_ids]
        else:
            local = batch.token_ids - self.vocab_start
            foreign = (local < 0) | (local >= table.shape[0])
            x = table[local.masked_fill_(foreign, 0)].masked_fill_(foreign.unsqueeze(1), 0)
            x = self._collectives.all_reduce(x)
        multiplier = self.description.embedding_multiplier
        if multiplier != 1.0:
            x.mul_(torch.tensor(multiplier, dtype=x.dtype) if self.description.rounded_multiplier else multiplier)
        if places is not None:
            x.add_(places[batch.positions + self.description.position_offset])
        norm = self.weights.embedding_norm
        return self._norm(x, *norm, self.description.norm_eps) if norm else x

    def _normalise(self, x: Tensor, residual: Tensor | None, norm: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the norm of the stream after adding x to it, and the stream."""
        eps = self.description.norm_eps
        if residual is None:
            normed, stream = self._norm(x, *norm, eps), x
        else:
            if self.description.residual_multiplier != 1.0:
                x.mul_(self.description.residual_multiplier)
            normed, stream = self._add_norm(x, residual, *norm, eps)
        return normed, normed if self.description.norm_as_residual else stream

    def _attend(
        self,
        index: int,
        x: Tensor,
        batch: StepBatch,
        cache: tuple[Tensor, Tensor],
        angles: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Return the attention of this rank's heads, side by side.

        Shapes: x [T, H]; result [T, heads of this rank * D].
        """
        layer = self.weights.layers[index]
        qkv = kernels.linear(x, layer.qkv_weight, layer.qkv_bias)
        q, k, v = kernels.split_qkv(qkv, self._qkv_layout, self.num_heads, self.num_kv_heads, self.head_dim)
        if layer.q_norm_weight is not None and layer.k_norm_weight is not None:
            q, k = self._norm_heads(q, layer.q_norm_weight), self._norm_heads(k, layer.k_norm_weight)
        if angles is not None:
            q, k = kernels.rotary(q, k, batch.positions, *angles, self._interleaved)
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
            self.description.window(index),
        )
        return out.flatten(1)

    def _norm_heads(self, x: Tensor, weight: Tensor) -> Tensor:
        return kernels.rms_norm(x.flatten(0, 1), weight, self.description.norm_eps).view(x.shape)

    def _reduce(self, partial: Tensor, *biases: Tensor | None) -> Tensor:
        """Return the sum of all ranks' products plus the biases, which are added here so that they count once."""
        x = self._collectives.all_reduce(partial)
        for bias in biases:
            if bias is not None:
                x.add_(bias)
        return x
