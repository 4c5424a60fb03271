"""LLaMA 1 to 3: rotary positions, RMS norms, a gated MLP, fewer kv heads than query heads.

Source: Touvron et al., LLaMA (2023); Grattafiori et al., The Llama 3 Herd of Models (2024), for the rope scaling.
"""

from __future__ import annotations

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.llama_like import llama_like


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    return llama_like(
        config, name, family="llama", default_positions=2048, biases={"attention_bias": False, "mlp_bias": False}
    )
