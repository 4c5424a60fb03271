"""Qwen2 and 2.5: LLaMA with biases of q, k and v, and a sliding window of the upper layers where it is used.

Source: Yang et al., Qwen2 Technical Report (2024).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import features, heads, layered_windows, longest_context, require, rope, untied


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config)
    require(config, use_mrope=False)
    config.choice("hidden_act", valid=("silu",), default="silu")
    num_layers = config.integer("num_hidden_layers")
    named = config.integer("max_position_embeddings", default=32768)
    positions = rope(config, sizes.head_dim, named)
    max_positions = longest_context(positions, named)
    return Architecture(
        name=name,
        family="qwen2",
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
        windows=layered_windows(config, num_layers, max_positions),
    )
