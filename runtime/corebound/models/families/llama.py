"""LLaMA 1 to 3: rotary positions, RMS norms, a gated MLP, fewer kv heads than query heads.

Source: Touvron et al., LLaMA (2023); Grattafiori et al., The Llama 3 Herd of Models (2024), for the rope scaling.
"""

from __future__ import annotations

from corebound.models.architecture import Architecture, Rope
from corebound.models.config_reader import ConfigReader


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a LLaMA config.json describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    hidden_size = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads, {num_heads}", num_kv_heads)
    if hidden_size % num_heads and config.values.get("head_dim") is None:
        raise config.wrong("num_attention_heads", f"a divisor of hidden_size {hidden_size}, or head_dim", num_heads)
    head_dim = config.integer("head_dim", default=max(1, hidden_size // num_heads))
    if head_dim % 2:
        raise config.wrong("head_dim", "an even number, for rotary positions", head_dim)
    config.choice("hidden_act", valid=("silu",), default="silu")
    optional = {
        "attention_bias": config.flag("attention_bias", default=False),
        "mlp_bias": config.flag("mlp_bias", default=False),
        "untied_head": not config.flag("tie_word_embeddings", default=False),
    }
    max_positions = config.integer("max_position_embeddings", default=2048)
    return Architecture(
        name=name,
        family="llama",
        num_layers=config.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        features=frozenset(feature for feature, present in optional.items() if present),
        norm="rms",
        norm_eps=config.number("rms_norm_eps", default=1e-6),
        activation="silu_gated",
        rope=_rope(config, max_positions),
        max_positions=max_positions,
    )


def _rope(config: ConfigReader, max_positions: int) -> Rope:
    """Return the rotary settings; transformers 5 keeps them in rope_parameters, older versions in two places."""
    scaling = config.section("rope_parameters", "rope_scaling")
    theta = config.number("rope_theta", default=10000.0)
    if scaling is None:
        return Rope(theta=theta)
    theta = scaling.number("rope_theta", default=theta)
    if scaling.number("partial_rotary_factor", default=1.0) != 1.0:
        raise scaling.wrong("partial_rotary_factor", "1.0", scaling.values["partial_rotary_factor"])
    kind = scaling.choice("rope_type", "type", valid=("default", "linear", "llama3"), default="default")
    if kind == "default":
        return Rope(theta=theta)
    factor = scaling.number("factor")
    if kind == "linear":
        return Rope(theta=theta, scaling=kind, factor=factor)
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.wrong("high_freq_factor", f"a number above low_freq_factor, {low:g}", high)
    return Rope(
        theta=theta,
        scaling=kind,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=scaling.integer("original_max_position_embeddings", default=max_positions),
    )
