"""StableLM: layer norms, a gated MLP, a part of each head turns; attention and MLP in parallel in some.

Source: Bellagente et al., Stable LM 2 1.6B Technical Report (2024).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import features, heads, require, rope, untied


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config, head_dim=False)
    config.choice("hidden_act", valid=("silu",), default="silu")
    require(config, qk_layernorm=False)
    parallel = config.flag("use_parallel_residual", default=False)
    max_positions = config.integer("max_position_embeddings", default=4096)
    return Architecture(
        name=name,
        family="stablelm",
        num_layers=config.integer("num_hidden_layers"),
        **sizes.sizes(),
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        features=features(
            qkv_bias=config.flag("use_qkv_bias", default=False),
            mlp_norm=not parallel,
            untied_head=untied(config, tied_by_default=False),
        ),
        norm="layer",
        norm_eps=config.number("layer_norm_eps", default=1e-5),
        activation="silu_gated",
        rope=rope(config, sizes.head_dim, max_positions, partial=0.25),
        max_positions=max_positions,
        parallel_residual=parallel,
    )
