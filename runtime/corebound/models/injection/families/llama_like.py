"""Blocks in the manner of LLaMA: RMS norm before each branch, rotary halves, grouped kv heads, a gated MLP."""

from __future__ import annotations

from typing import Any

from corebound.models.injection.description import BlockDescription, activation, missing

_NAMES: dict[str, Any] = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": "self_attn.o_proj",
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp_out": "mlp.down_proj",
    "norm": "rms",
    "rotary": "halves",
}


def llama_like(family: str, block_class: str, config: Any, **changes: Any) -> BlockDescription:
    """Return LLaMA's block with `changes`, sizes from the configuration."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    settings: dict[str, Any] = {
        "family": family,
        "block_class": block_class,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "head_dim": head_dim,
        "scale": head_dim**-0.5,
    }
    if "activation" not in changes:
        settings["activation"] = activation(family, config.hidden_act, gated=True)
    return BlockDescription(**{**_NAMES, **settings, **changes})


def llama(config: Any) -> BlockDescription:
    """Return the block of LLaMA."""
    return llama_like("llama", "llama.modeling_llama.LlamaDecoderLayer", config)


def mistral(config: Any) -> BlockDescription:
    """Return the block of Mistral."""
    return llama_like("mistral", "mistral.modeling_mistral.MistralDecoderLayer", config)


def qwen2(config: Any) -> BlockDescription:
    """Return the block of Qwen2, whose q, k and v have biases."""
    return llama_like("qwen2", "qwen2.modeling_qwen2.Qwen2DecoderLayer", config)


def qwen3(config: Any) -> BlockDescription:
    """Return the block of Qwen3, which normalises each head of q and k."""
    return llama_like(
        "qwen3",
        "qwen3.modeling_qwen3.Qwen3DecoderLayer",
        config,
        qk_norm="rms",
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
    )


def mixtral(config: Any) -> BlockDescription:
    """Return the block of Mixtral, with experts in place of the MLP."""
    return llama_like(
        "mixtral", "mixtral.modeling_mixtral.MixtralDecoderLayer", config, **_experts(config, renormalised=True)
    )


def qwen2_moe(config: Any) -> BlockDescription:
    """Return the block of Qwen2-MoE, with experts and one that all tokens share; an MLP in some."""
    return llama_like(
        "qwen2_moe",
        "qwen2_moe.modeling_qwen2_moe.Qwen2MoeDecoderLayer",
        config,
        shared_expert=True,
        **_experts(config, renormalised=config.norm_topk_prob),
    )


def qwen3_moe(config: Any) -> BlockDescription:
    """Return the block of Qwen3-MoE: Qwen3 with experts, an MLP in some."""
    return llama_like(
        "qwen3_moe",
        "qwen3_moe.modeling_qwen3_moe.Qwen3MoeDecoderLayer",
        config,
        qk_norm="rms",
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
        **_experts(config, renormalised=config.norm_topk_prob),
    )


def phi3(config: Any) -> BlockDescription:
    """Return the block of Phi-3, whose q, k, v and whose gate and up are already one matrix each."""
    return llama_like(
        "phi3",
        "phi3.modeling_phi3.Phi3DecoderLayer",
        config,
        qkv=("self_attn.qkv_proj",),
        mlp_in=("mlp.gate_up_proj",),
    )


def gemma(config: Any) -> BlockDescription:
    """Return the block of Gemma: norm weights count from one, GELU in the gate.

    Raises: KernelError for attention in both directions.
    """
    if getattr(config, "use_bidirectional_attention", None):
        raise missing("gemma", "attention in both directions")
    return llama_like("gemma", "gemma.modeling_gemma.GemmaDecoderLayer", config, norm="rms_plus_one")


def granite(config: Any) -> BlockDescription:
    """Return the block of Granite, which scales its scores and both branches by numbers of its own."""
    return llama_like(
        "granite",
        "granite.modeling_granite.GraniteDecoderLayer",
        config,
        scale=config.attention_multiplier,
        residual_factor=config.residual_multiplier,
    )


def olmo2(config: Any) -> BlockDescription:
    """Return the block of OLMo 2: norms after each branch, and of all of q and of k."""
    return llama_like(
        "olmo2",
        "olmo2.modeling_olmo2.Olmo2DecoderLayer",
        config,
        attention_norm="post_attention_layernorm",
        mlp_norm="post_feedforward_layernorm",
        norm_place="after_branch",
        qk_norm="rms_full",
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
    )


def starcoder2(config: Any) -> BlockDescription:
    """Return the block of StarCoder2: LLaMA's attention, layer norms and a plain MLP."""
    return llama_like(
        "starcoder2",
        "starcoder2.modeling_starcoder2.Starcoder2DecoderLayer",
        config,
        norm="layer",
        mlp_in=("mlp.c_fc",),
        mlp_out="mlp.c_proj",
        activation=activation("starcoder2", config.hidden_act),
    )


def stablelm(config: Any) -> BlockDescription:
    """Return the block of StableLM: layer norms, partial rotary, some with branches in parallel or norms per head."""
    parallel = bool(config.use_parallel_residual)
    return llama_like(
        "stablelm",
        "stablelm.modeling_stablelm.StableLmDecoderLayer",
        config,
        norm="layer",
        parallel=parallel,
        mlp_norm=None if parallel else "post_attention_layernorm",
        **_head_norms(config.qk_layernorm, "layer_per_head", "self_attn.q_layernorm", "self_attn.k_layernorm"),
    )


def cohere(config: Any) -> BlockDescription:
    """Return the block of Cohere: one norm for both branches in parallel, rotary pairs."""
    return llama_like(
        "cohere",
        "cohere.modeling_cohere.CohereDecoderLayer",
        config,
        norm="layer",
        parallel=True,
        mlp_norm=None,
        rotary="pairs",
        **_head_norms(config.use_qk_norm, "layer_per_head", "self_attn.q_norm", "self_attn.k_norm"),
    )


def _experts(config: Any, *, renormalised: bool) -> dict[str, Any]:
    return {"experts": "mlp", "num_chosen_experts": config.num_experts_per_tok, "renormalised_experts": renormalised}


def _head_norms(used: bool, kind: str, q_norm: str, k_norm: str) -> dict[str, Any]:
    return {"qk_norm": kind, "q_norm": q_norm, "k_norm": k_norm} if used else {}
