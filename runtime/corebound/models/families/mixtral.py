"""Mixtral: Mistral with experts in place of each MLP; the weights of those that a token has add up to one.

Source: Jiang et al., Mixtral of Experts (2024).
"""

from __future__ import annotations

from dataclasses import replace

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import require, windows
from corebound.models.families.experts import chosen_experts
from corebound.models.families.llama_like import llama_like


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    require(config, attention_bias=False)
    num_experts = config.integer("num_local_experts", "num_experts", default=8)
    plain = llama_like(config, name, family="mixtral", default_positions=131072, default_eps=1e-5, windows=windows)
    return replace(
        plain,
        num_experts=num_experts,
        expert_size=config.integer("intermediate_size"),
        num_chosen_experts=chosen_experts(config, num_experts, 2),
        renormalised_experts=True,
    )
