"""Phi-3 and 3.5 of short context, and Phi-4: LLaMA with fused projections; some turn only a part of a head.

Source: Abdin et al., Phi-3 Technical Report (2024).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import features, heads, require, rope, untied, windows


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config)
    require(config, attention_bias=False, mlp_bias=False)
    config.choice("hidden_act", valid=("silu",), default="silu")
    num_layers = config.integer("num_hidden_layers")
    max_positions = config.integer("max_position_embeddings", default=4096)
    return Architecture(
        name=name,
        family="phi3",
        num_layers=num_layers,
        **sizes.sizes(),
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        features=features(untied_head=untied(config, tied_by_default=False)),
        norm="rms",
        norm_eps=config.number("rms_norm_eps", default=1e-5),
        activation="silu_gated",
        # What older versions call yarn is longrope.
        rope=rope(config, sizes.head_dim, max_positions, partial=1.0, scalings=("default",)),
        max_positions=max_positions,
        windows=windows(config, num_layers, max_positions),
    )
