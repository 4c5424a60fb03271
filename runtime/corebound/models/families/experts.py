"""What the config.json of families with experts says in the same way."""

from __future__ import annotations

from typing import Any

from corebound.models.config_reader import ConfigReader


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
