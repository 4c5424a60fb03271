"""Falcon with rotary positions: the first layout (7B), the second (40B, 180B, 11B), parallel branches or not.

Source: Almazrouei et al., The Falcon Series of Open Language Models (2023).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import activation, features, require, rope, untied


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    hidden_size = config.integer("hidden_size", "n_embed")
    num_heads = config.integer("num_attention_heads", "n_head")
    if hidden_size % num_heads:
        raise config.wrong("num_attention_heads", f"a divisor of hidden_size {hidden_size}", num_heads)
    head_dim = hidden_size // num_heads
    require(config, alibi=False, apply_residual_connection_post_layernorm=False)
    new = config.flag("new_decoder_architecture", default=False)
    parallel = config.flag("parallel_attn", default=True)
    if new and not parallel:
        raise config.wrong("parallel_attn", "true with new_decoder_architecture", parallel)
    num_norms = config.integer("num_ln_in_parallel_attn", default=2 if new else 1)
    if num_norms not in (1, 2) or (num_norms == 2 and not new):
        raise config.wrong("num_ln_in_parallel_attn", "1 or 2" if new else "1", num_norms)
    max_positions = config.integer("max_position_embeddings", default=2048)
    return Architecture(
        name=name,
        family="falcon",
        num_layers=config.integer("num_hidden_layers", "n_layer"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, num_heads, new),
        head_dim=head_dim,
        intermediate_size=config.integer("ffn_hidden_size", default=4 * hidden_size),
        vocab_size=config.integer("vocab_size"),
        features=features(
            biases=config.flag("bias", default=False),
            input_norm=num_norms == 1,
            two_norms=num_norms == 2,
            sequential=not parallel,
            untied_head=untied(config, tied_by_default=True),
        ),
        norm="layer",
        norm_eps=config.number("layer_norm_epsilon", default=1e-5),
        activation=activation(config, "activation", default="gelu"),
        rope=rope(config, head_dim, max_positions),
        max_positions=max_positions,
        parallel_residual=parallel,
    )


def _num_kv_heads(config: ConfigReader, num_heads: int, new: bool) -> int:
    if not new:
        return 1 if config.flag("multi_query", default=True) else num_heads
    num_kv_heads = config.integer("num_kv_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise config.wrong("num_kv_heads", f"a divisor of num_attention_heads, {num_heads}", num_kv_heads)
    return num_kv_heads
