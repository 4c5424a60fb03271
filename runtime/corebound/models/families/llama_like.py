"""What the families that LLaMA is the pattern of say in the same way: their files add only what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import features, heads, longest_context, rope, untied


def llama_like(
    config: ConfigReader,
    name: str,
    *,
    family: str,
    default_positions: int,
    default_head_dim: int | None = None,
    default_eps: float = 1e-6,
    biases: Mapping[str, bool] | None = None,
    windows: Callable[[ConfigReader, int, int], tuple[int, ...]] | None = None,
) -> Architecture:
    """Return a decoder with rotary positions, RMS norms and an MLP gated by SiLU.

    `default_positions`, `default_head_dim` and `default_eps` stand where config.json says nothing; without a size of
    heads, one has the hidden size over their number. `biases` are the fields, named as the features, by which the
    family switches biases on, with their defaults. `windows` gives the sliding windows from the number of layers and of
    positions.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config, default_head_dim=default_head_dim)
    config.choice("hidden_act", valid=("silu",), default="silu")
    num_layers = config.integer("num_hidden_layers")
    named = config.integer("max_position_embeddings", default=default_positions)
    positions = rope(config, sizes.head_dim, named)
    max_positions = longest_context(positions, named)
    return Architecture(
        name=name,
        family=family,
        num_layers=num_layers,
        **sizes.sizes(),
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        features=features(
            untied_head=untied(config, tied_by_default=False),
            **{bias: config.flag(bias, default=default) for bias, default in (biases or {}).items()},
        ),
        norm="rms",
        norm_eps=config.number("rms_norm_eps", default=default_eps),
        activation="silu_gated",
        rope=positions,
        max_positions=max_positions,
        windows=() if windows is None else windows(config, num_layers, max_positions),
    )
