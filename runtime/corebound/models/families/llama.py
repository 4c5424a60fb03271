"""LLaMA 1 to 3: rotary positions, RMS norms, a gated MLP, fewer kv heads than query heads.

Source: Touvron et al., LLaMA (2023); Grattafiori et al., The Llama 3 Herd of Models (2024), for the rope scaling.
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import features, heads, longest_context, rope, untied


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config)
    config.choice("hidden_act", valid=("silu",), default="silu")
    named = config.integer("max_position_embeddings", default=2048)
    positions = rope(config, sizes.head_dim, named)
    max_positions = longest_context(positions, named)
    return Architecture(
        name=name,
        family="llama",
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
        rope=positions,
        max_positions=max_positions,
    )
