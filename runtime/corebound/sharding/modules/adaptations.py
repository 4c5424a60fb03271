"""What single families need beyond sliced weights. Each function changes one model and keeps no state elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from corebound.comm import Collectives
from corebound.errors import ShardingError
from corebound.sharding.modules.deal import RankDeal
from corebound.sharding.modules.layouts import NUM_CODEGEN_BLOCKS


def slice_bloom_alibi(model: nn.Module, deal: RankDeal, collectives: Collectives) -> None:
    """Give each attention its heads of the alibi that the model built for all, whose number decides every slope.

    Where it is built there are two ways, with a mask and without; what they make is the same.
    """
    heads, num_heads = deal.query_heads, deal.heads.num_heads

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        alibi: Tensor = kwargs["alibi"]
        per_head = alibi.view(-1, num_heads, *alibi.shape[1:])
        kwargs["alibi"] = per_head[:, heads.start : heads.stop].flatten(0, 1)
        return args, kwargs

    for _, attention in _named_ends(model, "self_attention"):
        attention.register_forward_pre_hook(before, with_kwargs=True)


def slice_mpt_alibi(model: nn.Module, deal: RankDeal, collectives: Collectives) -> None:
    """Build the position bias for all heads and keep that of this rank's."""
    base: Any = model.base_model
    whole = base.build_mpt_alibi_tensor
    heads = deal.query_heads

    def build(*args: Any, **kwargs: Any) -> Tensor:
        bias: Tensor = whole(*args, **kwargs)
        return bias[heads.start : heads.stop]

    base.build_mpt_alibi_tensor = build


def slice_falcon_alibi(model: nn.Module, deal: RankDeal, collectives: Collectives) -> None:
    """Give each attention its heads of the alibi, and of the mask that the model has added alibi to."""
    heads, num_heads = deal.query_heads, deal.heads.num_heads

    def sliced(tensor: Tensor) -> Tensor:
        if tensor.dim() == 3:  # batch and heads in one dimension
            tensor = tensor.view(-1, num_heads, *tensor.shape[1:])
            return tensor[:, heads.start : heads.stop].flatten(0, 1)
        return tensor[:, heads.start : heads.stop] if tensor.shape[1] == num_heads else tensor

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        for name in ("alibi", "attention_mask"):
            if kwargs.get(name) is not None:
                kwargs[name] = sliced(kwargs[name])
        return args, kwargs

    for _, attention in _named_ends(model, "self_attention"):
        attention.register_forward_pre_hook(before, with_kwargs=True)


def own_config(model: nn.Module, deal: RankDeal, collectives: Collectives) -> None:
    """Give the attention modules a configuration of their own with this rank's number of query heads."""
    whole: Any = model.config
    config = copy.copy(whole)
    config.num_attention_heads = deal.num_heads
    for _, attention in _named_ends(model, "self_attn"):
        attention.config = config


def flat_codegen_heads(model: nn.Module, deal: RankDeal, collectives: Collectives) -> None:
    """Take heads from all channels in a row, as this rank's lie, so that any number of heads works.

    Raises: ShardingError where the channels do not divide into CodeGen's blocks.
    """
    if deal.num_heads * deal.heads.head_dim % NUM_CODEGEN_BLOCKS:
        raise ShardingError(
            f"{deal.num_heads} heads of {deal.heads.head_dim} cannot be laid out in {NUM_CODEGEN_BLOCKS} blocks"
        )

    def split_heads(x: Tensor, n_head: int, dim_head: int, mp_num: int) -> Tensor:
        return x.reshape(*x.shape[:-2], n_head, dim_head)

    for _, attention in _named_ends(model, "attn"):
        attention._split_heads = split_heads


def slice_norms_per_head(model: nn.Module, deal: RankDeal, collectives: Collectives) -> None:
    """Keep the norms of this rank's heads, where each head has one."""
    for _, attention in _named_ends(model, "self_attn"):
        if attention.qk_layernorm:
            for norm, heads in ((attention.q_layernorm, deal.query_heads), (attention.k_layernorm, deal.kv_heads)):
                norm.norms = nn.ModuleList([norm.norms[head] for head in heads])
                norm.num_heads = len(heads)


def sum_norms_over_ranks(model: nn.Module, deal: RankDeal, collectives: Collectives) -> None:
    """Replace norms over all heads' channels by ones that sum the squares of all ranks."""
    counted = torch.zeros(deal.num_kv_heads)
    for slot, head in enumerate(deal.kv_heads):
        counted[slot] = head in deal.owned_kv_heads and deal.kv_heads.index(head) == slot
    for _, attention in _named_ends(model, "self_attn"):
        width = deal.heads.head_dim
        for name, heads, counts in (("q_norm", deal.query_heads, None), ("k_norm", deal.kv_heads, counted)):
            norm = getattr(attention, name)
            whole = norm.weight.detach()
            weight = whole.view(-1, width)[list(heads)].flatten()
            mask = None if counts is None or bool(counts.all()) else counts.repeat_interleave(width)
            setattr(
                attention,
                name,
                SummedRMSNorm(weight, norm.variance_epsilon, whole.numel(), mask, collectives),
            )


class SummedRMSNorm(nn.Module):
    """An RMS norm over channels that lie on several ranks."""

    counted: Tensor | None

    def __init__(
        self, weight: Tensor, eps: float, num_channels: int, counted: Tensor | None, collectives: Collectives
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.variance_epsilon, self.num_channels, self.collectives = eps, num_channels, collectives
        self.register_buffer("counted", counted, persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return this rank's channels divided by the root mean square of all ranks', times weight.

        Shapes: hidden_states and result [..., part of the channels].
        """
        values = hidden_states.float()
        squares = values.pow(2)
        if self.counted is not None:  # channels that another rank holds too count there
            squares = squares * self.counted
        total = self.collectives.all_reduce(squares.sum(-1, keepdim=True))
        values = values * torch.rsqrt(total / self.num_channels + self.variance_epsilon)
        return (self.weight * values).to(hidden_states.dtype)


def _named_ends(model: nn.Module, end: str) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in list(model.named_modules()) if name.endswith("." + end))
