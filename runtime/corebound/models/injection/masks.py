"""Masks of transformers in one form, whatever the attention implementation and the family made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corebound.errors import KernelError


@dataclass(frozen=True)
class Mask:
    """`visible` says which keys a query sees; `bias`, for a mask that is more than that, what is added to its scores.

    Shapes: visible [B, S, T] or, where heads differ, [B, heads, S, T] bool; bias [B, 1 or heads, S, T].
    """

    visible: Tensor
    bias: Tensor | None


def read_mask(mask: object, batch: int, num_queries: int, num_keys: int, *, marks_hidden: bool) -> Mask:
    """Return what a block's `attention_mask` means; a boolean one with `marks_hidden` is true where a key is hidden.

    Raises: KernelError for a mask of a kind or shape that no attention of transformers on CPU uses.
    """
    if not isinstance(mask, Tensor):
        raise KernelError(
            f"injected block: cannot read an attention mask of type {type(mask).__name__}",
            hint='load the model with attn_implementation="sdpa" or "eager"',
        )
    if mask.dim() == 2 and mask.shape == (batch, num_keys):
        order = torch.arange(num_keys - num_queries, num_keys).unsqueeze(1)
        return Mask((torch.arange(num_keys) <= order) & mask.bool().unsqueeze(1), None)
    if mask.dim() != 4 or mask.shape[2] != num_queries or mask.shape[3] < num_keys or mask.shape[0] not in (1, batch):
        raise KernelError(
            f"injected block: expected an attention mask of shape [{batch}, 1, {num_queries}, {num_keys}], "
            f"found {list(mask.shape)}"
        )
    # The mask of a cache with room for more is longer than its keys.
    mask = mask[..., :num_keys].expand(batch, -1, -1, -1)
    if mask.dtype == torch.bool:
        visible, bias = ~mask if marks_hidden else mask, None
    else:
        visible = mask > torch.finfo(mask.dtype).min / 2
        bias = mask if bool((visible & (mask != 0)).any()) else None
    return Mask(visible[:, 0] if mask.shape[1] == 1 else visible, bias)
