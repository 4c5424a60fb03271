"""The meaning of every operator in plain torch: the fallback, and what the native variants are tested against.

16-bit inputs are computed in float32 and rounded once at the end, float64 stays float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from corebound.errors import KernelError


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return x normalised over its last dimension, times weight, plus bias. Shapes: x [..., H]; weight and bias [H]."""
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * scale * _wide(weight) + _wide(bias)).to(x.dtype)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the layer norm of x + residual, and the sum itself. Shapes: x, residual [..., H]; weight, bias [H]."""
    total = x + residual
    return layer_norm(total, weight, bias, eps), total


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x divided by its root mean square over the last dimension, times weight.

    Shapes: x [..., H]; weight [H].
    """
    wide = _wide(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * _wide(weight)).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the RMS norm of x + residual, and the sum itself. Shapes: x and residual [..., H]; weight [H]."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def split_qkv(
    qkv: Tensor, layout: str, num_heads: int, num_kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v as contiguous [T, heads, D] tensors.

    Raises: KernelError for another layout, heads that it cannot hold, or another number of columns.
    """
    tokens = qkv.shape[0]
    if layout == "per_head":
        if num_heads != num_kv_heads:
            raise KernelError(
                f"split_qkv: layout per_head needs equal head counts, found {num_heads} query and {num_kv_heads} kv"
            )
        q, k, v = qkv.view(tokens, num_heads, 3, head_dim).unbind(2)
    elif layout == "stacked":
        sizes = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim]
        q, k, v = (part.unflatten(1, (-1, head_dim)) for part in _split_columns(qkv, sizes))
    else:
        raise KernelError(f"split_qkv: unknown layout {layout!r}, expected per_head or stacked")
    return q.contiguous(), k.contiguous(), v.contiguous()


def rotary(
    q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Return q and k with the first 2 * cos.shape[1] of their D dimensions rotated, the rest unchanged."""
    token_cos, token_sin = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    return _rotate(q, token_cos, token_sin, interleaved), _rotate(k, token_cos, token_sin, interleaved)


def store_kv(k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """Write each token's keys and values to its slot of the blocked cache. Shapes: as `kernels.store_kv`."""
    block_size = key_cache.shape[2]
    blocks, offsets = slots // block_size, slots % block_size
    key_cache[blocks, :, offsets] = k
    value_cache[blocks, :, offsets] = v


def attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    scale: float,
    alibi_slopes: Tensor | None = None,
    kv_heads: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    """Return causal attention of every sequence's queries over its cached keys and values.

    Shapes: as `kernels.attention`.
    Raises: KernelError as `even_kv_heads`, without `kv_heads`.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    heads = even_kv_heads(q.shape[1], key_cache.shape[1]) if kv_heads is None else kv_heads.long()
    starts, lengths = query_starts.tolist(), context_lengths.tolist()
    for index, length in enumerate(lengths):
        begin, end = starts[index], starts[index + 1]
        if end > begin:
            keys = _gather(key_cache, block_tables[index], length)[heads]
            values = _gather(value_cache, block_tables[index], length)[heads]
            out[begin:end] = _attend(q[begin:end], keys, values, scale, alibi_slopes, window)
    return out


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """Return the Gaussian error linear unit of x, of any shape, by the tanh formula or the error function (`none`).

    Raises: KernelError for another approximation.
    """
    wide = _wide(x)
    if approximate == "tanh":
        inner = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide * wide * wide)
        return (0.5 * wide * (1.0 + torch.tanh(inner))).to(x.dtype)
    if approximate == "none":
        return (0.5 * wide * (1.0 + torch.erf(wide * math.sqrt(0.5)))).to(x.dtype)
    raise KernelError(f"gelu: unknown approximation {approximate!r}, expected tanh or none")


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, where gate is the first half of the last dimension. Shapes: [..., 2 I] -> [..., I]."""
    gate, up = _wide(gate_up).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x times weight transposed, plus bias. Shapes: x [..., K]; weight [N, K]; bias [N]; result [..., N]."""
    return torch.nn.functional.linear(x, weight, bias)


def even_kv_heads(num_heads: int, num_kv_heads: int) -> Tensor:
    """Return for each query head the kv head it reads, in groups of equal size: [num_heads] int64.

    Raises: KernelError for heads that do not divide into so many groups.
    """
    if num_heads % num_kv_heads:
        raise KernelError(f"attention: {num_heads} query heads do not divide into {num_kv_heads} groups; pass kv_heads")
    return torch.arange(num_heads) // (num_heads // num_kv_heads)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _split_columns(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    if x.shape[1] != sum(sizes):
        raise KernelError(f"split_qkv: expected {sum(sizes)} columns, found {x.shape[1]}")
    return tuple(part.contiguous() for part in torch.split(x, sizes, dim=1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    half = cos.shape[-1]
    wide = _wide(x)
    turned, rest = wide[..., : 2 * half], wide[..., 2 * half :]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    left, right = first * cos - second * sin, second * cos + first * sin
    turned = torch.stack((left, right), -1).flatten(-2) if interleaved else torch.cat((left, right), -1)
    return torch.cat((turned, rest), -1).to(x.dtype)


def _gather(cache: Tensor, block_table: Tensor, length: int) -> Tensor:
    """Return one sequence's cached rows as [Hkv, length, D]."""
    block_size = cache.shape[2]
    blocks = block_table[: -(-length // block_size)].long()
    return cache[blocks].transpose(0, 1).flatten(1, 2)[:, :length]


def _attend(q: Tensor, keys: Tensor, values: Tensor, scale: float, alibi_slopes: Tensor | None, window: int) -> Tensor:
    num_queries, num_keys = q.shape[0], keys.shape[1]
    scores = torch.matmul(_wide(q).transpose(0, 1), _wide(keys).transpose(1, 2)) * scale
    query_positions = torch.arange(num_keys - num_queries, num_keys).unsqueeze(1)
    distance = torch.arange(num_keys).unsqueeze(0) - query_positions
    if alibi_slopes is not None:
        scores = scores + alibi_slopes.to(scores.dtype).view(-1, 1, 1) * distance
    hidden = distance > 0 if window == 0 else (distance > 0) | (distance <= -window)
    scores = scores.masked_fill(hidden, float("-inf"))
    return torch.matmul(torch.softmax(scores, -1), _wide(values)).transpose(0, 1).to(q.dtype)
