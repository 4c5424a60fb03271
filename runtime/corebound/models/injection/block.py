"""The injected block: what a family's decoder block computes, on the operators of corebound.kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from corebound import kernels
from corebound.comm import Collectives
from corebound.errors import KernelError
from corebound.models.injection.angles import angles_of_embeddings, angles_of_table
from corebound.models.injection.attention import StepNotes, attend
from corebound.models.injection.cache import Stored, row_layer
from corebound.models.injection.description import BlockDescription
from corebound.models.injection.experts import InjectedExperts
from corebound.models.injection.norms import FullNorm, HeadNorm, block_norm
from corebound.models.injection.rows import RowStore, rows_of
from corebound.models.injection.shares import HeadShare
from corebound.models.injection.taking import BlockTaker, Product

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: kernels.gelu(x, "tanh"),
    "gelu_erf": lambda x: kernels.gelu(x, "none"),
    "relu": torch.relu_,
    "silu_gated": kernels.silu_mul,
    "gelu_tanh_gated": lambda x: _gelu_gated(x, "tanh"),
    "gelu_erf_gated": lambda x: _gelu_gated(x, "none"),
}


class Projection(nn.Module):
    """The weight of a product, and its bias: added with it, or by the block after a sum over the ranks."""

    bias: nn.Parameter | None

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.weight = nn.Parameter(product.weight, requires_grad=False)
        bias = None if product.bias is None else nn.Parameter(product.bias, requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times weight transposed, plus bias.

        Shapes: [T, K] -> [T, N].
        """
        return kernels.linear(x, self.weight, self.bias)

    def partial(self, x: Tensor) -> Tensor:
        """Return x times weight transposed.

        Shapes: [T, K] -> [T, N].
        """
        return kernels.linear(x, self.weight)


class InjectedBlock(nn.Module):
    """Takes the place of one decoder block; its forward is called with what transformers calls the original with.

    For inference: results carry no gradients. Attention weights are never made, so they cannot be asked for.
    """

    angle_table: Tensor | None

    def __init__(
        self,
        taker: BlockTaker,
        description: BlockDescription,
        share: HeadShare,
        collectives: Collectives,
        notes: StepNotes,
        *,
        first: bool,
    ) -> None:
        super().__init__()
        self.description = description
        self.layer_idx: int = taker.module(description.attention).layer_idx
        self._share, self._collectives, self._notes, self._first = share, collectives, notes, first
        self._set_norms(taker)
        self._qkv_layout = "per_head" if description.qkv_layout == "per_head" else "stacked"
        self.qkv = Projection(taker.qkv(share.num_heads, share.num_kv_heads))
        self.attention_out = Projection(taker.rows(description.attention_out))
        self._activation = _ACTIVATIONS[description.activation]
        self._set_mlp(taker)
        self._slopes = None if description.alibi == "none" else torch.tensor(share.slopes, dtype=torch.float32)
        angle_table = None
        if description.rotary_buffer is not None:
            path, _, name = description.rotary_buffer.rpartition(".")
            angle_table = getattr(taker.module(path), name)
        self.register_buffer("angle_table", angle_table, persistent=False)

    @torch.no_grad()
    def forward(
        self,
        hidden_states: Tensor,
        *positional: Any,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        layer_past: Cache | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        position_ids: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """Return the block's output, in a tuple where the family's own block returns one.

        Shapes: hidden_states and output [B, S, H].

        Raises: KernelError in training mode, for attention weights or cross attention, or for a mask of unknown kind.
        """
        self._check(positional, others)
        if self._first:
            self._notes.clear()
        batch, num_tokens, _ = hidden_states.shape
        x = hidden_states.reshape(batch * num_tokens, -1)
        angles = self._angles(batch, num_tokens, position_embeddings, position_ids)
        cache = layer_past if past_key_values is None else past_key_values

        def attention(normed: Tensor) -> Tensor:
            return self._attend(normed, (batch, num_tokens), attention_mask, cache, angles)

        out = self._walk(x, attention).view_as(hidden_states)
        return (out, None) if self.description.returns_tuple else out

    def _walk(self, x: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the block's output; `attention` yields this rank's part before the sum over the ranks.

        Shapes: [T, H] -> [T, H].
        """
        description = self.description
        if description.norm_place == "after_branch":
            stream: Tensor = self.attention_norm(self._attention_sum(attention(x))).add_(x)
            return stream.add(self.mlp_norm(self._mlp_sum(stream)))
        if description.norm_place == "after_residual":
            stream, _ = self.attention_norm.add(self._attention_sum(attention(x)), x)
            normed: Tensor = self.mlp_norm.add(self._mlp_sum(stream), stream)[0]
            return normed
        normed = self.attention_norm(x)
        if description.parallel:
            mlp_input = normed if self.mlp_norm is None else self.mlp_norm(x)
            if self._share.sharded != self._mlp_sharded:
                return self._attention_sum(attention(normed)).add_(self._mlp_sum(mlp_input)).add_(x)
            # Both branches are sums over the ranks of which only the total is needed: one exchange does for both.
            partial = attention(normed).add_(self._mlp(mlp_input))
            return self._sum(partial, self._mlp_sharded, self.attention_out.bias, self._mlp_bias).add_(x)
        branch = self._scaled(self._attention_sum(attention(normed)))
        normed, stream = self.mlp_norm.add(branch, normed if description.norm_as_residual else x)
        return self._scaled(self._mlp_sum(normed)).add_(normed if description.norm_as_residual else stream)

    def _attention_sum(self, partial: Tensor) -> Tensor:
        return self._sum(partial, self._share.sharded, self.attention_out.bias)

    def _mlp_sum(self, x: Tensor) -> Tensor:
        return self._sum(self._mlp(x), self._mlp_sharded, self._mlp_bias)

    def _attend(
        self,
        x: Tensor,
        shape: tuple[int, int],
        mask: Tensor | None,
        cache: Cache | None,
        angles: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor:
        """Return this rank's part of the attention's output.

        Shapes: x and result [B * S, H]; `shape` is (B, S).
        """
        share, description = self._share, self.description
        qkv = self.qkv(x)
        if description.clip_qkv is not None:
            qkv = qkv.clamp_(-description.clip_qkv, description.clip_qkv)
        q, k, v = kernels.split_qkv(qkv, self._qkv_layout, share.num_heads, share.num_kv_heads, description.head_dim)
        if self.full_norm is not None:
            q, k = self.full_norm(q, k)
        elif self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = kernels.rotary(q, k, *angles, description.rotary == "pairs")
        stores, num_keys = self._store(k, v, shape, cache)
        plan = self._notes.plan(mask, *shape, num_keys)
        out = attend(q, stores, plan, description.scale, self._slopes)
        return self.attention_out.partial(out.flatten(1))

    def _store(self, k: Tensor, v: Tensor, shape: tuple[int, int], cache: Cache | None) -> Stored:
        """Add keys and values to the cache; return the rows of all of them and how many each sequence has.

        Shapes: k and v [B * S, Hkv, D].
        """
        batch, num_tokens = shape
        if cache is None:
            return (RowStore(k.unsqueeze(2), num_tokens), RowStore(v.unsqueeze(2), num_tokens)), num_tokens
        layer = row_layer(cache, self.layer_idx)
        if layer is not None:
            return layer.append(k, v, batch)
        keys, values = (part.view(batch, num_tokens, *part.shape[1:]).transpose(1, 2) for part in (k, v))
        keys, values = cache.update(keys, values, self.layer_idx)
        return (rows_of(keys), rows_of(values)), keys.shape[2]

    def _angles(
        self,
        batch: int,
        num_tokens: int,
        embeddings: tuple[Tensor, Tensor] | None,
        position_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return positions, cosines and sines for the rotary operator.

        Shapes: positions [B * S] int64; cosines and sines [P, R / 2] float32.
        """
        if self.description.rotary == "none":
            return None
        table = self.angle_table
        if table is not None:
            if position_ids is None:
                raise KernelError(f"{self.description.family}: the model gave its blocks no position_ids")
            return self._notes.angles(position_ids, lambda: angles_of_table(table, position_ids, batch))
        if embeddings is None:
            raise KernelError(f"{self.description.family}: the model gave its blocks no position_embeddings")
        cos, sin = embeddings
        pairs = self.description.rotary == "pairs"
        return self._notes.angles(cos, lambda: angles_of_embeddings(cos, sin, batch, pairs=pairs))

    def _mlp(self, x: Tensor) -> Tensor:
        if self.experts is not None:
            mixed: Tensor = self.experts(x)  # a call of a Module is Any
            return mixed
        assert self.mlp_in is not None and self.mlp_out is not None, "a block has one MLP or experts"
        return self.mlp_out.partial(self._activation(self.mlp_in(x)))

    @property
    def _mlp_bias(self) -> Tensor | None:
        return None if self.mlp_out is None else self.mlp_out.bias

    def _sum(self, partial: Tensor, sharded: bool, *biases: Tensor | None) -> Tensor:
        """Return the sum of all ranks' parts plus the biases, which are added here so that they count once."""
        x = self._collectives.all_reduce(partial) if sharded else partial
        for bias in biases:
            if bias is not None:
                x = x.add_(bias)
        return x

    def _scaled(self, branch: Tensor) -> Tensor:
        factor = self.description.residual_factor
        return branch if factor == 1.0 else branch.mul_(factor)

    def _check(self, positional: tuple[Any, ...], others: dict[str, Any]) -> None:
        family = self.description.family
        if self.training:
            raise KernelError(f"{family}: an injected block is for inference", hint="call model.eval()")
        if others.get("output_attentions"):
            raise KernelError(
                f"{family}: output_attentions=True, but an injected block never makes attention weights",
                hint="leave replace_with_kernel_inject off to look at attention weights",
            )
        # The one argument that a family gives by position is the output of an encoder.
        if any(given is not None for given in (*positional, others.get("encoder_hidden_states"))):
            raise KernelError(f"{family}: an injected block has no cross attention")

    def _set_mlp(self, taker: BlockTaker) -> None:
        description = self.description
        self.mlp_in: Projection | None = None
        self.mlp_out: Projection | None = None
        self.experts: InjectedExperts | None = None
        if taker.has_experts():
            self.experts = InjectedExperts(taker, description, self._activation)
            self._mlp_sharded = taker.experts_sharded()
            return
        mlp_in, mlp_out = taker.mlp(num_gates=int(description.activation.endswith("_gated")))
        self.mlp_in, self.mlp_out = Projection(mlp_in), Projection(mlp_out)
        self._mlp_sharded = taker.sharded(description.mlp_out)

    def _set_norms(self, taker: BlockTaker) -> None:
        description, share = self.description, self._share
        # Any: which of them exist is the family's choice, and each way through the block uses those it has.
        self.attention_norm: Any = block_norm(description.norm, taker.norm(description.attention_norm))
        self.mlp_norm: Any = block_norm(description.norm, taker.norm(description.mlp_norm))
        self.q_norm: HeadNorm | None = None
        self.k_norm: HeadNorm | None = None
        self.full_norm: FullNorm | None = None
        q = taker.head_norm(description.q_norm, share.num_heads)
        k = taker.head_norm(description.k_norm, share.num_kv_heads)
        if q is None or k is None:
            return
        if description.qk_norm == "rms_full":
            sizes = (description.num_heads * description.head_dim, description.num_kv_heads * description.head_dim)
            collectives = self._collectives if share.sharded else None
            self.full_norm = FullNorm(q, k, sizes=sizes, owned=share.owned_kv_heads, collectives=collectives)
        else:
            self.q_norm, self.k_norm = HeadNorm(description.qk_norm, q), HeadNorm(description.qk_norm, k)


def _gelu_gated(gate_up: Tensor, approximate: str) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return kernels.gelu(gate, approximate).mul_(up)
