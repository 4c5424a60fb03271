"""Blocks whose attention and MLP read the same input: both branches meet in one sum over the ranks."""

from __future__ import annotations

from typing import Any

from corebound.models.injection.description import BlockDescription, activation, missing


def gptj(config: Any) -> BlockDescription:
    """Return the block of GPT-J: one norm, rotary pairs."""
    return _gptj_like(
        config,
        family="gptj",
        block_class="gptj.modeling_gptj.GPTJBlock",
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    )


def codegen(config: Any) -> BlockDescription:
    """Return the block of CodeGen: GPT-J with q, v and k of each quarter of the heads side by side."""
    return _gptj_like(
        config,
        family="codegen",
        block_class="codegen.modeling_codegen.CodeGenBlock",
        qkv=("attn.qkv_proj",),
        qkv_layout="quarters",
    )


def _gptj_like(config: Any, *, family: str, **names: Any) -> BlockDescription:
    head_dim = config.n_embd // config.n_head
    return BlockDescription(
        family=family,
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        attention_norm="ln_1",
        mlp_norm=None,
        parallel=True,
        attention_out="attn.out_proj",
        mlp_in=("mlp.fc_in",),
        mlp_out="mlp.fc_out",
        activation=activation(family, config.activation_function),
        rotary="pairs",
        rotary_buffer="attn.embed_positions",
        returns_tuple=True,
        **names,
    )


def gpt_neox(config: Any) -> BlockDescription:
    """Return the block of GPT-NeoX: partial rotary halves, a norm for each branch, in parallel or in turn."""
    head_dim = config.hidden_size // config.num_attention_heads
    return BlockDescription(
        family="gpt_neox",
        block_class="gpt_neox.modeling_gpt_neox.GPTNeoXLayer",
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        parallel=config.use_parallel_residual,
        qkv=("attention.query_key_value",),
        qkv_layout="per_head",
        attention_out="attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        activation=activation("gpt_neox", config.hidden_act),
        rotary="halves",
    )


def phi(config: Any) -> BlockDescription:
    """Return the block of Phi: partial rotary halves, one norm for both branches, biases everywhere."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    norms = config.qk_layernorm
    return BlockDescription(
        family="phi",
        block_class="phi.modeling_phi.PhiDecoderLayer",
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        attention_norm="input_layernorm",
        mlp_norm=None,
        parallel=True,
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_out="self_attn.dense",
        mlp_in=("mlp.fc1",),
        mlp_out="mlp.fc2",
        activation=activation("phi", config.hidden_act),
        qk_norm="layer" if norms else "none",
        q_norm="self_attn.q_layernorm" if norms else None,
        k_norm="self_attn.k_layernorm" if norms else None,
        rotary="halves",
    )


def falcon(config: Any) -> BlockDescription:
    """Return the block of Falcon, of the first layout (7b) or the second (40b, 180b).

    Raises: KernelError for Falcon with alibi.
    """
    if config.alibi:
        raise missing("falcon", "alibi=true: its biases are rounded to bfloat16 in every precision")
    grouped = config.new_decoder_architecture
    head_dim = config.hidden_size // config.num_attention_heads
    num_kv_heads = config.num_kv_heads if grouped or not config.multi_query else 1
    attention_norm, mlp_norm = "input_layernorm", None
    if grouped and config.num_ln_in_parallel_attn == 2:
        attention_norm, mlp_norm = "ln_attn", "ln_mlp"
    elif not grouped and not config.parallel_attn:
        mlp_norm = "post_attention_layernorm"
    return BlockDescription(
        family="falcon",
        block_class="falcon.modeling_falcon.FalconDecoderLayer",
        num_heads=config.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        attention_norm=attention_norm,
        mlp_norm=mlp_norm,
        parallel=grouped or config.parallel_attn,
        qkv=("self_attention.query_key_value",),
        qkv_layout="grouped" if grouped else "stacked" if config.multi_query else "per_head",
        attention_out="self_attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        activation=activation("falcon", config.activation),
        rotary="halves",
        returns_tuple=True,
    )
