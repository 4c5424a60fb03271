"""OPT: learned positions, layer norms before attention and MLP, biases, usually ReLU.

Source: Zhang et al., OPT: Open Pre-trained Transformer Language Models (2022).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import activation, features, require, untied

_OFFSET = 2  # the first rows of the table of positions are nobody's


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    hidden_size = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    if hidden_size % num_heads:
        raise config.wrong("num_attention_heads", f"a divisor of hidden_size {hidden_size}", num_heads)
    require(config, do_layer_norm_before=True, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False)
    projected = config.integer("word_embed_proj_dim", default=hidden_size)
    if projected != hidden_size:
        raise config.wrong("word_embed_proj_dim", f"hidden_size, {hidden_size}", projected)
    max_positions = config.integer("max_position_embeddings", default=2048)
    return Architecture(
        name=name,
        family="opt",
        num_layers=config.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=config.integer("ffn_dim"),
        vocab_size=config.integer("vocab_size"),
        num_positions=max_positions + _OFFSET,
        features=features(
            biases=config.flag("enable_bias", default=True),
            untied_head=untied(config, tied_by_default=True),
        ),
        norm="layer",
        norm_eps=1e-5,
        activation=activation(config, "activation_function", default="relu"),
        max_positions=max_positions,
        position_offset=_OFFSET,
    )
