"""The families whose blocks can be replaced, and what the others lack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from corebound.models.injection.description import BlockDescription, missing
from corebound.models.injection.families import alibi, learned, llama_like, parallel

# By the model_type of a configuration.
_DESCRIPTIONS: dict[str, Callable[[Any], BlockDescription]] = {
    "bloom": alibi.bloom,
    "codegen": parallel.codegen,
    "cohere": llama_like.cohere,
    "falcon": parallel.falcon,
    "gemma": llama_like.gemma,
    "gpt_bigcode": learned.gpt_bigcode,
    "gpt_neox": parallel.gpt_neox,
    "gptj": parallel.gptj,
    "granite": llama_like.granite,
    "llama": llama_like.llama,
    "mistral": llama_like.mistral,
    "mixtral": llama_like.mixtral,
    "mpt": alibi.mpt,
    "olmo2": llama_like.olmo2,
    "opt": learned.opt,
    "phi": parallel.phi,
    "phi3": llama_like.phi3,
    "qwen2": llama_like.qwen2,
    "qwen2_moe": llama_like.qwen2_moe,
    "qwen3": llama_like.qwen3,
    "qwen3_moe": llama_like.qwen3_moe,
    "stablelm": llama_like.stablelm,
    "starcoder2": llama_like.starcoder2,
}
# What stands in the way for families that are asked for often.
_MISSING = {
    "gemma2": "soft-capped attention scores",
    "gpt2": "matrices that are stored transposed (Conv1D)",
}

FAMILIES = tuple(_DESCRIPTIONS)


def describe_block(config: Any) -> BlockDescription:
    """Return the description of the blocks of a model with this Hugging Face configuration.

    Raises: KernelError naming what is missing, or that the family is unknown.
    """
    family = str(getattr(config, "model_type", "unknown"))
    if family in _DESCRIPTIONS:
        return _DESCRIPTIONS[family](config)
    raise missing(family, _MISSING.get(family, f"this family: it has no description (there are {', '.join(FAMILIES)})"))
