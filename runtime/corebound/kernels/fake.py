"""Result shapes of the native operators, so that torch.compile and meta tensors can trace them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register() -> None:
    """Tell torch the result shapes; called once, after the operators are loaded."""
    for name, function in _SHAPES.items():
        torch.library.register_fake(f"corebound::{name}", function)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _split_qkv(
    qkv: Tensor, per_head: bool, num_heads: int, num_kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = qkv.shape[0]
    q = qkv.new_empty((tokens, num_heads, head_dim))
    return q, qkv.new_empty((tokens, num_kv_heads, head_dim)), qkv.new_empty((tokens, num_kv_heads, head_dim))


def _rotary(
    q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _store_kv(k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    return None


def _attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    scale: float,
    alibi_slopes: Tensor | None,
    kv_heads: Tensor | None,
    window: int = 0,
) -> Tensor:
    return q.new_empty(q.shape)


def _gelu(x: Tensor, exact: bool) -> Tensor:
    return x.new_empty(x.shape)


def _silu_mul(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _panel_linear(
    x: Tensor,
    panels: Tensor,
    bias: Tensor | None,
    outputs: int,
    inputs: int,
    kind: int,
    group_inputs: int,
    scale_kind: int,
    asymmetric: bool,
    gated: bool,
    activation: int,
) -> Tensor:
    return x.new_empty((x.shape[0], outputs // 2 if gated else outputs))


_SHAPES: dict[str, Callable[..., Any]] = {
    "layer_norm": _layer_norm,
    "add_layer_norm": _add_layer_norm,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "split_qkv": _split_qkv,
    "rotary": _rotary,
    "store_kv": _store_kv,
    "attention": _attention,
    "gelu": _gelu,
    "silu_mul": _silu_mul,
    "linear": _linear,
    "panel_linear": _panel_linear,
}
