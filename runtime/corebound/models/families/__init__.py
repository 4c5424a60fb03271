"""The families: how each one's config.json describes the decoder. Adding one is described in docs/models.md."""

from __future__ import annotations

from collections.abc import Callable

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families import bloom, llama

# By the name in the field `architectures` of config.json; never guessed from any other text.
ARCHITECTURES: dict[str, Callable[[ConfigReader, str], Architecture]] = {
    "BloomForCausalLM": bloom.architecture,
    "LlamaForCausalLM": llama.architecture,
}
