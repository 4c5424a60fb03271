"""Mistral: LLaMA without biases, and a sliding window in the first version.

Source: Jiang et al., Mistral 7B (2023).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import features, heads, longest_context, require, rope, untied, windows


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config)
    require(config, attention_bias=False, mlp_bias=False)
    config.choice("hidden_act", valid=("silu",), default="silu")
    num_layers = config.integer("num_hidden_layers")
    named = config.integer("max_position_embeddings", default=131072)
    positions = rope(config, sizes.head_dim, named)
    max_positions = longest_context(positions, named)
    return Architecture(
        name=name,
        family="mistral",
        num_layers=num_layers,
        **sizes.sizes(),
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        features=features(untied_head=untied(config, tied_by_default=False)),
        norm="rms",
        norm_eps=config.number("rms_norm_eps", default=1e-6),
        activation="silu_gated",
        rope=positions,
        max_positions=max_positions,
        windows=windows(config, num_layers, max_positions, default=4096),
    )
