"""GPT-NeoX and Pythia: attention and MLP in parallel, each with a norm; a part of each head turns.

Source: Black et al., GPT-NeoX-20B (2022); Biderman et al., Pythia (2023).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import activation, features, heads, rope, untied


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config, head_dim=False)
    if sizes.num_kv_heads != sizes.num_heads:
        raise config.wrong("num_key_value_heads", f"num_attention_heads, {sizes.num_heads}", sizes.num_kv_heads)
    max_positions = config.integer("max_position_embeddings", default=2048)
    return Architecture(
        name=name,
        family="gpt_neox",
        num_layers=config.integer("num_hidden_layers"),
        **sizes.sizes(),
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        features=features(
            attention_bias=config.flag("attention_bias", default=True),
            untied_head=untied(config, tied_by_default=False),
        ),
        norm="layer",
        norm_eps=config.number("layer_norm_eps", default=1e-5),
        activation=activation(config, "hidden_act", default="gelu"),
        rope=rope(config, sizes.head_dim, max_positions, partial=0.25),
        max_positions=max_positions,
        parallel_residual=config.flag("use_parallel_residual", default=True),
    )
