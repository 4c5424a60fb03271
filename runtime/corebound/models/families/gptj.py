"""GPT-J: attention and MLP in parallel behind one norm; neighbouring dimensions turn together; a head with a bias.

Source: Wang and Komatsuzaki, GPT-J-6B (2021).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture, Rope
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import activation, features, untied


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    hidden_size = config.integer("n_embd", "hidden_size")
    num_heads = config.integer("n_head", "num_attention_heads")
    if hidden_size % num_heads:
        raise config.wrong("n_head", f"a divisor of n_embd, {hidden_size}", num_heads)
    head_dim = hidden_size // num_heads
    rotary_dim = config.integer("rotary_dim", minimum=2)
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise config.wrong("rotary_dim", f"an even number up to the size of a head, {head_dim}", rotary_dim)
    max_positions = config.integer("n_positions", "max_position_embeddings", default=2048)
    return Architecture(
        name=name,
        family="gptj",
        num_layers=config.integer("n_layer", "num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=config.integer("n_inner", default=4 * hidden_size),
        vocab_size=config.integer("vocab_size"),
        features=features(untied_head=untied(config, tied_by_default=False)),
        norm="layer",
        norm_eps=config.number("layer_norm_epsilon", default=1e-5),
        activation=activation(config, "activation_function", default="gelu_new"),
        rope=Rope(theta=10000.0, dim=rotary_dim, interleaved=True),
        max_positions=max_positions,
        parallel_residual=True,
    )
