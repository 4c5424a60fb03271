"""One table per family, by the `model_type` of its configuration; some depend on the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from corebound.sharding.modules.families import (
    bloom,
    falcon,
    gpt_neox,
    gptj,
    llama,
    moe,
    mpt,
    normed,
    opt,
    phi,
    starcoder,
)
from corebound.sharding.modules.table import ModuleTable

TABLES: dict[str, ModuleTable | Callable[[Any], ModuleTable]] = {
    "bloom": bloom.TABLE,
    "codegen": gptj.CODEGEN,
    "cohere": normed.COHERE,
    "falcon": falcon.table,
    "gemma": llama.TABLE,
    "gemma2": llama.TABLE,
    "gpt_bigcode": starcoder.gpt_bigcode,
    "gpt_neox": gpt_neox.table,
    "gptj": gptj.GPTJ,
    "granite": llama.TABLE,
    "llama": llama.TABLE,
    "mistral": llama.TABLE,
    "mixtral": moe.MIXTRAL,
    "mpt": mpt.TABLE,
    "olmo2": normed.OLMO2,
    "opt": opt.TABLE,
    "phi": phi.PHI,
    "phi3": phi.PHI3,
    "qwen2": llama.TABLE,
    "qwen2_moe": moe.QWEN2_MOE,
    "qwen3": llama.TABLE,
    "stablelm": normed.stablelm,
    "starcoder2": starcoder.STARCODER2,
}


def table_of(config: Any) -> ModuleTable | None:
    """Return the table for a model with this configuration, or None."""
    found = TABLES.get(getattr(config, "model_type", ""))
    return found if found is None or isinstance(found, ModuleTable) else found(config)
