"""Corebound: core-bound, tensor-parallel inference of large language models on x86 servers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from corebound.version import __version__ as __version__

if TYPE_CHECKING:
    from corebound.accelerator import get_accelerator as get_accelerator
    from corebound.comm import init_distributed as init_distributed
    from corebound.engine import LLM as LLM
    from corebound.engine import SamplingParams as SamplingParams
    from corebound.training import optimization_report as optimization_report
    from corebound.training import optimize as optimize

# Public names are loaded on first use, so that `corebound plan` and `corebound doctor` never import torch.
_LAZY = {
    "LLM": "corebound.engine",
    "SamplingParams": "corebound.engine",
    "get_accelerator": "corebound.accelerator",
    "init_distributed": "corebound.comm",
    "optimization_report": "corebound.training",
    "optimize": "corebound.training",
}
_LAZY_MODULES = ("accelerator", "comm", "kernels", "topology")

__all__ = ["LLM", "SamplingParams", "get_accelerator", "init_distributed", "optimization_report", "optimize"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _LAZY_MODULES:
        return importlib.import_module(f"corebound.{name}")
    raise AttributeError(f"module 'corebound' has no attribute {name!r}")
