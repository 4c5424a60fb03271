"""Blocks without positions in their inputs: attention falls off with distance."""

from __future__ import annotations

from typing import Any

from corebound.models.injection.description import BlockDescription


def bloom(config: Any) -> BlockDescription:
    """Return the block of BLOOM: q, k and v per head, biases everywhere, GELU by the tanh formula."""
    head_dim = config.hidden_size // config.n_head
    return BlockDescription(
        family="bloom",
        block_class="bloom.modeling_bloom.BloomBlock",
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        norm_as_residual=config.apply_residual_connection_post_layernorm,
        qkv=("self_attention.query_key_value",),
        qkv_layout="per_head",
        attention_out="self_attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        activation="gelu_tanh",
        alibi="tokens",
        returns_tuple=True,
    )


def mpt(config: Any) -> BlockDescription:
    """Return the block of MPT: no biases, distances that count masked places too."""
    head_dim = config.d_model // config.n_heads
    attention = config.attn_config
    return BlockDescription(
        family="mpt",
        block_class="mpt.modeling_mpt.MptBlock",
        num_heads=config.n_heads,
        num_kv_heads=config.n_heads,
        head_dim=head_dim,
        scale=attention.softmax_scale or head_dim**-0.5,
        attention_norm="norm_1",
        mlp_norm="norm_2",
        qkv=("attn.Wqkv",),
        attention_out="attn.out_proj",
        mlp_in=("ffn.up_proj",),
        mlp_out="ffn.down_proj",
        activation="gelu_erf",
        alibi="slots",
        clip_qkv=attention.clip_qkv or None,
        mask_marks_hidden=True,
        returns_tuple=True,
    )
