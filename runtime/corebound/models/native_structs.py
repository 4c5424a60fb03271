"""The structures of csrc/decoder/model.h, field for field."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from corebound.kernels.panel_format import MatrixStruct

_POINTER, _INT64, _FLOAT, _BOOL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_bool
_MAX_GROUP_HEADS = 8  # kernels::max_group_heads
ALL_REDUCE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _INT64)


class NormStruct(ctypes.Structure):
    """decoder::Norm."""

    _fields_ = [("weight", _POINTER), ("bias", _POINTER)]


class ExpertStruct(ctypes.Structure):
    """decoder::Expert."""

    _fields_ = [("mlp_in", MatrixStruct), ("mlp_out", MatrixStruct)]


class LayerStruct(ctypes.Structure):
    """decoder::Layer."""

    _fields_ = [
        ("attention_norm", NormStruct),
        ("mlp_norm", NormStruct),
        ("qkv", MatrixStruct),
        ("attention_out", MatrixStruct),
        ("mlp_in", MatrixStruct),
        ("mlp_out", MatrixStruct),
        ("qkv_bias", _POINTER),
        ("attention_out_bias", _POINTER),
        ("mlp_in_bias", _POINTER),
        ("mlp_out_bias", _POINTER),
        ("q_norm", _POINTER),
        ("k_norm", _POINTER),
        ("window", _INT64),
        ("experts", _POINTER),
        ("router", MatrixStruct),
    ]


class HeadGroupStruct(ctypes.Structure):
    """kernels::HeadGroup."""

    _fields_ = [("first", ctypes.c_int32), ("count", ctypes.c_int32), ("kv_head", ctypes.c_int32)]


def head_groups(kv_head_map: Sequence[int]) -> ctypes.Array[HeadGroupStruct]:
    """Return runs of query heads that read the same kv head, each no longer than the kernel takes at once."""
    groups: list[list[int]] = []
    for head, kv in enumerate(kv_head_map):
        if groups and groups[-1][2] == kv and groups[-1][1] < _MAX_GROUP_HEADS:
            groups[-1][1] += 1
        else:
            groups.append([head, 1, kv])
    return (HeadGroupStruct * len(groups))(*(HeadGroupStruct(*group) for group in groups))


class ModelStruct(ctypes.Structure):
    """decoder::Model."""

    _fields_ = [
        ("num_layers", _INT64),
        ("hidden", _INT64),
        ("heads", _INT64),
        ("kv_heads", _INT64),
        ("head_dim", _INT64),
        ("vocab_start", _INT64),
        ("layers", _POINTER),
        ("embedding", _POINTER),
        ("num_words", _INT64),
        ("embedding_norm", NormStruct),
        ("final_norm", NormStruct),
        ("head", MatrixStruct),
        ("groups", _POINTER),
        ("num_groups", _INT64),
        ("first_head", _POINTER),
        ("alibi_slopes", _POINTER),
        ("scale", _FLOAT),
        ("norm_eps", _FLOAT),
        ("activation", ctypes.c_int32),
        ("rms_norm", _BOOL),
        ("norm_as_residual", _BOOL),
        ("per_head_qkv", _BOOL),
        ("comm_group", _INT64),
        ("all_reduce", ALL_REDUCE),
        ("position_embedding", _POINTER),
        ("head_bias", _POINTER),
        ("rotary_half", _INT64),
        ("residual_multiplier", _FLOAT),
        ("embedding_multiplier", _FLOAT),
        ("norm_offset", _FLOAT),
        ("rotary_interleaved", _BOOL),
        ("parallel_residual", _BOOL),
        ("num_experts", _INT64),
        ("num_chosen", _INT64),
        ("shared_expert", _BOOL),
        ("renormalised_experts", _BOOL),
    ]


class StepStruct(ctypes.Structure):
    """decoder::Step."""

    _fields_ = [
        ("tokens", _INT64),
        ("sequences", _INT64),
        ("max_blocks", _INT64),
        ("rows", _INT64),
        ("token_ids", _POINTER),
        ("positions", _POINTER),
        ("slots", _POINTER),
        ("block_tables", _POINTER),
        ("query_starts", _POINTER),
        ("context_lengths", _POINTER),
        ("logits_rows", _POINTER),
        ("key_caches", _POINTER),
        ("value_caches", _POINTER),
        ("block_size", _INT64),
        ("block_stride", _INT64),
        ("cos", _POINTER),
        ("sin", _POINTER),
        ("logits", _POINTER),
        ("best_values", _POINTER),
        ("best_words", _POINTER),
    ]
