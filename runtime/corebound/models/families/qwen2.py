"""Qwen2 and 2.5: LLaMA with biases of q, k and v, and a sliding window of the upper layers where it is used.

Source: Yang et al., Qwen2 Technical Report (2024).
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import layered_windows, require
from corebound.models.families.llama_like import llama_like


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    require(config, use_mrope=False)
    return llama_like(config, name, family="qwen2", default_positions=32768, windows=layered_windows)
