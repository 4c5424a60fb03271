"""Qwen3-MoE: Qwen3 with experts in most layers.

Source: Yang et al., Qwen3 Technical Report (2025).
"""

from __future__ import annotations

from dataclasses import replace

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import windows
from corebound.models.families.experts import qwen_experts
from corebound.models.families.llama_like import llama_like


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    plain = llama_like(
        config, name, family="qwen3_moe", default_positions=32768, biases={"attention_bias": False}, windows=_windows
    )
    return replace(plain, **qwen_experts(config, num_experts=128, expert_size=768, num_chosen=8))


def _windows(config: ConfigReader, num_layers: int, max_positions: int) -> tuple[int, ...]:
    if not config.flag("use_sliding_window", default=False):
        return ()
    return windows(config, num_layers, max_positions, default=4096)
