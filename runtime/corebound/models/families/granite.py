"""Granite 3: LLaMA with multipliers of the embeddings, the scores, the residual connections and the logits.

Source: Granite Team, Granite 3.0 Language Models (2024).
"""

from __future__ import annotations

from dataclasses import replace

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families.llama_like import llama_like

_POSITIONS = 2048


def architecture(config: ConfigReader, name: str) -> Architecture:
    """Return the architecture that a config.json of this family describes.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not computed here.
    """
    plain = llama_like(
        config,
        name,
        family="granite",
        default_positions=_POSITIONS,
        biases={"attention_bias": False, "mlp_bias": False},
    )
    return replace(
        plain,
        # As the field says, also where YaRN would stretch it.
        max_positions=config.integer("max_position_embeddings", default=_POSITIONS),
        embedding_multiplier=config.number("embedding_multiplier", default=1.0),
        attention_scale=config.number("attention_multiplier", default=1.0),
        residual_multiplier=config.number("residual_multiplier", default=1.0),
        logits_divisor=config.number("logits_scaling", default=1.0),
    )
