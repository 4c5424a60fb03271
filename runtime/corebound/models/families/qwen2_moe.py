"""Qwen2-MoE and Qwen1.5-MoE: Qwen2 with experts in most layers, and one more that all tokens share.

Source: Yang et al., Qwen2 Technical Report (2024).
"""

from __future__ import annotations

from dataclasses import replace

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import layered_windows
from corebound.models.families.experts import qwen_experts
from corebound.models.families.llama_like import llama_like


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    if config.flag("use_sliding_window", default=False) and config.values.get("layer_types") is None:
        raise config.wrong("layer_types", "the kind of each layer, for use_sliding_window", None)
    experts = qwen_experts(config, num_experts=60, expert_size=1408, num_chosen=4)
    experts["shared_expert_size"] = config.integer("shared_expert_intermediate_size", default=5632)
    plain = llama_like(
        config, name, family="qwen2_moe", default_positions=32768, biases={"qkv_bias": True}, windows=layered_windows
    )
    return replace(plain, **experts)
