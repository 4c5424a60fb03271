"""Qwen3: each head of the queries and keys is normalised before it turns; its size is a field of its own.

Source: Yang et al., Qwen3 Technical Report (2025).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import layered_windows
from corebound.models.families.llama_like import llama_like


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    return llama_like(
        config,
        name,
        family="qwen3",
        default_positions=32768,
        default_head_dim=128,
        biases={"attention_bias": False},
        windows=layered_windows,
    )
