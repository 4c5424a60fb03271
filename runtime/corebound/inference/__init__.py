"""`init_inference`: models of transformers on the ranks of a launch, for scripts that were written for DeepSpeed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corebound.inference.configuration import InferenceConfig as InferenceConfig
    from corebound.inference.engine import InferenceEngine as InferenceEngine
    from corebound.inference.engine import init_inference as init_inference
    from corebound.inference.on_device import OnDevice as OnDevice

# Loaded on first use: transformers and torch take seconds.
_LAZY = {
    "InferenceConfig": "configuration",
    "InferenceEngine": "engine",
    "OnDevice": "on_device",
    "init_inference": "engine",
}

__all__ = ["InferenceConfig", "InferenceEngine", "OnDevice", "init_inference"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"corebound.inference.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'corebound.inference' has no attribute {name!r}")
