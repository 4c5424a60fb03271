"""Generation: requests, continuous batching over a blocked KV cache, sampling, and the loop that drives all ranks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corebound.engine.llm import LLM as LLM
    from corebound.engine.request import RequestOutput as RequestOutput
    from corebound.engine.request import SamplingParams as SamplingParams

# Loaded on first use: the command line validates requests without importing torch.
_LAZY = {
    "LLM": "corebound.engine.llm",
    "RequestOutput": "corebound.engine.request",
    "SamplingParams": "corebound.engine.request",
}

__all__ = ["LLM", "RequestOutput", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'corebound.engine' has no attribute {name!r}")
