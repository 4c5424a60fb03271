"""Gemma 1: norms whose weights count from one, embeddings times the root of their size, a gated GELU.

Source: Gemma Team, Gemma: Open Models Based on Gemini Research and Technology (2024).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import features, heads, require, rope, untied


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config, default_head_dim=256)
    # The first checkpoints say gelu in hidden_act and mean the tanh formula; a later field says so.
    config.choice("hidden_activation", valid=("gelu_pytorch_tanh",), default="gelu_pytorch_tanh")
    config.choice("hidden_act", valid=("gelu_pytorch_tanh", "gelu"), default="gelu_pytorch_tanh")
    require(config, use_bidirectional_attention=False)
    max_positions = config.integer("max_position_embeddings", default=8192)
    return Architecture(
        name=name,
        family="gemma",
        num_layers=config.integer("num_hidden_layers"),
        **sizes.sizes(),
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        features=features(
            attention_bias=config.flag("attention_bias", default=False),
            untied_head=untied(config, tied_by_default=True),
        ),
        norm="rms",
        norm_eps=config.number("rms_norm_eps", default=1e-6),
        norm_offset=1.0,
        activation="gelu_tanh_gated",
        rope=rope(config, sizes.head_dim, max_positions),
        max_positions=max_positions,
        embedding_multiplier=sizes.hidden_size**0.5,
        rounded_multiplier=True,
    )
