"""Models: one decoder, and one short file per family that describes it.

Describing and resolving a model needs no torch; what does is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from corebound.models.architecture import Architecture, Rope
from corebound.models.description import ModelDescription, describe
from corebound.models.manifest import Verification, model_listing, verify_manifest, write_manifest
from corebound.models.resolve import resolve_model

if TYPE_CHECKING:
    from corebound.models.batch import StepBatch
    from corebound.models.decoder import Decoder
    from corebound.models.loading import load_model

_NEED_TORCH = {
    "Decoder": "decoder",
    "StepBatch": "batch",
    "load_model": "loading",
}

__all__ = [
    "Architecture",
    "Decoder",
    "ModelDescription",
    "Rope",
    "StepBatch",
    "Verification",
    "describe",
    "load_model",
    "model_listing",
    "resolve_model",
    "verify_manifest",
    "write_manifest",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(importlib.import_module(f"corebound.models.{_NEED_TORCH[name]}"), name)
    raise AttributeError(f"module 'corebound.models' has no attribute {name!r}")
