"""Operators of the decoder: one public function each, over a native or a plain-torch implementation chosen at start.

Importing this package does not import torch; the first call of an operator does.

Shape letters used throughout: T tokens, H hidden size, Hq query heads, Hkv key/value heads, D head size, B sequences,
K inputs and N outputs of a linear layer, I intermediate size, P positions.
"""

from corebound.kernels.ops import (
    add_layer_norm,
    add_rms_norm,
    attention,
    gelu,
    layer_norm,
    linear,
    rms_norm,
    rotary,
    silu_mul,
    split_qkv,
    store_kv,
)
from corebound.kernels.selection import OPS, Row, active_isa, all_native, forced, running_table, table

__all__ = [
    "OPS",
    "Row",
    "active_isa",
    "add_layer_norm",
    "add_rms_norm",
    "all_native",
    "attention",
    "forced",
    "gelu",
    "layer_norm",
    "linear",
    "rms_norm",
    "rotary",
    "running_table",
    "silu_mul",
    "split_qkv",
    "store_kv",
    "table",
]
