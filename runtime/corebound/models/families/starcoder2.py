"""StarCoder2: layer norms, biases, an MLP without gate, a sliding window in some.

Source: Lozhkov et al., StarCoder 2 and The Stack v2 (2024).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import activation, features, heads, rope, untied, windows


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config)
    config.choice("norm_type", valid=("layer_norm",), default="layer_norm")
    config.choice("mlp_type", valid=("default",), default="default")
    num_layers = config.integer("num_hidden_layers")
    max_positions = config.integer("max_position_embeddings", default=4096)
    return Architecture(
        name=name,
        family="starcoder2",
        num_layers=num_layers,
        **sizes.sizes(),
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        features=features(
            biases=config.flag("use_bias", default=True),
            untied_head=untied(config, tied_by_default=True),
        ),
        norm="layer",
        norm_eps=config.number("norm_epsilon", default=1e-5),
        activation=activation(config, "hidden_act", default="gelu_pytorch_tanh"),
        rope=rope(config, sizes.head_dim, max_positions),
        max_positions=max_positions,
        windows=windows(config, num_layers, max_positions),
    )
