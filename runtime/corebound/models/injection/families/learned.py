"""Blocks whose positions are embeddings, added before the first of them."""

from __future__ import annotations

from typing import Any

from corebound.models.injection.description import BlockDescription, activation, missing


def opt(config: Any) -> BlockDescription:
    """Return the block of OPT: ReLU; norms before each branch, or after each sum in the 350m model."""
    head_dim = config.hidden_size // config.num_attention_heads
    return BlockDescription(
        family="opt",
        block_class="opt.modeling_opt.OPTDecoderLayer",
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        attention_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        norm_place="before" if config.do_layer_norm_before else "after_residual",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_out="self_attn.out_proj",
        mlp_in=("fc1",),
        mlp_out="fc2",
        activation=activation("opt", config.activation_function),
    )


def gpt_bigcode(config: Any) -> BlockDescription:
    """Return the block of GPT-BigCode: one kv head for all, or one for each head.

    Raises: KernelError for cross attention.
    """
    if config.add_cross_attention:
        raise missing("gpt_bigcode", "cross attention")
    head_dim = config.hidden_size // config.num_attention_heads
    return BlockDescription(
        family="gpt_bigcode",
        block_class="gpt_bigcode.modeling_gpt_bigcode.GPTBigCodeBlock",
        num_heads=config.num_attention_heads,
        num_kv_heads=1 if config.multi_query else config.num_attention_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5 if config.scale_attn_weights else 1.0,
        attention_norm="ln_1",
        mlp_norm="ln_2",
        qkv=("attn.c_attn",),
        qkv_layout="stacked" if config.multi_query else "per_head",
        attention_out="attn.c_proj",
        mlp_in=("mlp.c_fc",),
        mlp_out="mlp.c_proj",
        activation=activation("gpt_bigcode", config.activation_function),
    )
