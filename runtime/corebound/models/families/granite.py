"""Granite 3: LLaMA with multipliers of the embeddings, the scores, the residual connections and the logits.

Source: Granite Team, Granite 3.0 Language Models (2024).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import features, heads, rope, untied


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config)
    config.choice("hidden_act", valid=("silu",), default="silu")
    max_positions = config.integer("max_position_embeddings", default=2048)
    return Architecture(
        name=name,
        family="granite",
        num_layers=config.integer("num_hidden_layers"),
        **sizes.sizes(),
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        features=features(
            attention_bias=config.flag("attention_bias", default=False),
            mlp_bias=config.flag("mlp_bias", default=False),
            untied_head=untied(config, tied_by_default=False),
        ),
        norm="rms",
        norm_eps=config.number("rms_norm_eps", default=1e-6),
        activation="silu_gated",
        rope=rope(config, sizes.head_dim, max_positions),
        max_positions=max_positions,
        embedding_multiplier=config.number("embedding_multiplier", default=1.0),
        attention_scale=config.number("attention_multiplier", default=1.0),
        residual_multiplier=config.number("residual_multiplier", default=1.0),
        logits_divisor=config.number("logits_scaling", default=1.0),
    )
