"""The angles of a step's tokens for the rotary operator, from the forms in which models of transformers have them."""

from __future__ import annotations

import torch
from torch import Tensor


def angles_of_table(table: Tensor, positions: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `rotary` takes from a table that has, for each position, its sines and then its cosines.

    Shapes: table [P, R]; positions [B or 1, S] int64; result [B * S], [rows, R / 2], [rows, R / 2].
    """
    sin, cos = table[positions].float().chunk(2, -1)
    return _token_angles(cos, sin, batch)


def angles_of_embeddings(cos: Tensor, sin: Tensor, batch: int, *, pairs: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `rotary` takes from the angles that a model gives for each token.

    It gives every one twice: side by side (`pairs`), or in the first and in the second half.

    Shapes: cos and sin [B or 1, S, R]; result [B * S], [rows, R / 2], [rows, R / 2].
    """
    half = cos.shape[-1] // 2
    cos, sin = ((part[..., ::2] if pairs else part[..., :half]).float() for part in (cos, sin))
    return _token_angles(cos, sin, batch)


def _token_angles(cos: Tensor, sin: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the row of each token's angles, and those rows; a batch may share one set.

    Shapes: [B or 1, S, R / 2] -> [B * S], [rows, R / 2], [rows, R / 2].
    """
    sets, num_tokens, half = cos.shape
    rows = torch.arange(sets * num_tokens).view(sets, num_tokens).expand(batch, num_tokens).flatten()
    return rows, cos.reshape(-1, half).contiguous(), sin.reshape(-1, half).contiguous()
