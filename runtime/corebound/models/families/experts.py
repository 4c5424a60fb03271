"""What the config.json of families with experts says in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import features, heads, longest_context, rope, untied


def with_experts(
    config: ConfigReader,
    name: str,
    *,
    family: str,
    experts: dict[str, Any],
    default_positions: int,
    default_eps: float = 1e-6,
    biases: dict[str, bool] | None = None,
    windows: Callable[[ConfigReader, int, int], tuple[int, ...]],
) -> Architecture:
    """Return a decoder with the attention of LLaMA, and the `experts` that the family has read.

    `biases` are the flags, named as the features, that switch biases on, with their defaults. `windows` gives the
    sliding windows from the number of layers and of positions.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    sizes = heads(config)
    config.choice("hidden_act", valid=("silu",), default="silu")
    num_layers = config.integer("num_hidden_layers")
    named = config.integer("max_position_embeddings", default=default_positions)
    positions = rope(config, sizes.head_dim, named)
    max_positions = longest_context(positions, named)
    switched = {field: config.flag(field, default=default) for field, default in (biases or {}).items()}
    return Architecture(
        name=name,
        family=family,
        num_layers=num_layers,
        **sizes.sizes(),
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        features=features(untied_head=untied(config, tied_by_default=False), **switched),
        norm="rms",
        norm_eps=config.number("rms_norm_eps", default=default_eps),
        activation="silu_gated",
        rope=positions,
        max_positions=max_positions,
        windows=windows(config, num_layers, max_positions),
        **experts,
    )


def chosen_experts(config: ConfigReader, num_experts: int, default: int) -> int:
    """Return how many experts a token has.

    Raises: ModelLoadError for more than there are.
    """
    chosen = config.integer("num_experts_per_tok", default=default)
    if chosen > num_experts:
        raise config.wrong("num_experts_per_tok", f"at most {num_experts}, the number of experts", chosen)
    return chosen


def qwen_experts(config: ConfigReader, *, num_experts: int, expert_size: int, num_chosen: int) -> dict[str, Any]:
    """Return the experts of Qwen's families, which some layers have not; sizes that are left out as transformers does.

    Raises: ModelLoadError naming the field.
    """
    num_layers = config.integer("num_hidden_layers")
    num_experts = config.integer("num_experts", "num_local_experts", default=num_experts)
    step = config.integer("decoder_sparse_step", default=1)
    dense = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int and 0 <= layer < num_layers for layer in dense):
        raise config.wrong("mlp_only_layers", f"a list of layers from 0 to {num_layers - 1}", dense)
    return {
        "num_experts": num_experts,
        "expert_size": config.integer("moe_intermediate_size", default=expert_size),
        "num_chosen_experts": chosen_experts(config, num_experts, num_chosen),
        "renormalised_experts": config.flag("norm_topk_prob", default=False),
        "dense_layers": frozenset(layer for layer in range(num_layers) if (layer + 1) % step or layer in dense),
    }
