"""Mistral: LLaMA without biases, and a sliding window in the first version.

Source: Jiang et al., Mistral 7B (2023).
"""

from __future__ import annotations

from functools import partial

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.common import require, windows
from corebound.models.families.llama_like import llama_like


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    require(config, attention_bias=False, mlp_bias=False)
    return llama_like(config, name, family="mistral", default_positions=131072, windows=partial(windows, default=4096))
