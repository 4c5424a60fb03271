"""BLOOM: alibi, layer norms with one after the embedding, GELU by the tanh formula.

Source: BigScience Workshop, BLOOM: A 176B-Parameter Open-Access Multilingual Language Model (2022).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a BLOOM config.json describes.

    Raises: ModelLoadError naming the field that is missing or wrong.
    """
    hidden_size = config.integer("hidden_size", "n_embed")
    num_heads = config.integer("n_head", "num_attention_heads")
    if hidden_size % num_heads:
        raise config.wrong("n_head", f"a divisor of the hidden size {hidden_size}", num_heads)
    tied = config.flag("tie_word_embeddings", default=True)
    return Architecture(
        name=name,
        family="bloom",
        num_layers=config.integer("n_layer", "num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=4 * hidden_size,
        vocab_size=config.integer("vocab_size"),
        features=frozenset() if tied else frozenset({"untied_head"}),
        norm="layer",
        norm_eps=config.number("layer_norm_epsilon", default=1e-5),
        activation="gelu_tanh",
        embedding_norm=True,
        norm_as_residual=config.flag("apply_residual_connection_post_layernorm", default=False),
    )
