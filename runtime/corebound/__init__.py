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
    from corebound.inference import InferenceEngine as InferenceEngine
    from corebound.inference import OnDevice as OnDevice
    from corebound.inference import init_inference as init_inference
    from corebound.training import optimization_report as optimization_report
    from corebound.training import optimize as optimize

# Public names are loaded on first use, so that `corebound plan` and `corebound doctor` never import torch.
_LAZY = {
    "InferenceEngine": "corebound.inference",
    "LLM": "corebound.engine",
    "OnDevice": "corebound.inference",
    "SamplingParams": "corebound.engine",
    "get_accelerator": "corebound.accelerator",
    "init_distributed": "corebound.comm",
    "init_inference": "corebound.inference",
    "optimization_report": "corebound.training",
    "optimize": "corebound.training",
}
_LAZY_MODULES = ("accelerator", "comm", "kernels", "llm", "runtime", "topology")

# What scripts may ask for, above all those written for DeepSpeed, and what to do instead.
_TRAINING = "Corebound is for inference: drop the call, or train with DeepSpeed itself"
_NOT_HERE = {
    "DeepSpeedEngine": _TRAINING,
    "PipelineModule": _TRAINING,
    "add_config_arguments": "it adds flags for training: drop the call; init_inference takes a configuration itself",
    "add_tuning_arguments": _TRAINING,
    "checkpointing": _TRAINING,
    "initialize": _TRAINING,
    "module_inject": "the layers of a model are named by init_inference(injection_policy={BlockClass: (names, ...)})",
    "moe": "experts are split as the model's table says: drop it",
    "ops": "operators are in corebound.kernels; `corebound doctor` lists them",
    "pipe": _TRAINING,
    "prepare": "optimize(model) makes a model ready without accelerate, for inference; training is not here yet",
    "tp_model_init": "init_inference(model, tensor_parallel={'tp_size': N}) splits a model",
    "zero": "weights are never outside of memory: use more ranks, which each hold a part (tp_size), or dtype int8",
}

__all__ = [
    "LLM",
    "InferenceEngine",
    "OnDevice",
    "SamplingParams",
    "get_accelerator",
    "init_distributed",
    "init_inference",
    "optimization_report",
    "optimize",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _LAZY_MODULES:
        return importlib.import_module(f"corebound.{name}")
    hint = f": {_NOT_HERE[name]}" if name in _NOT_HERE else ""
    raise AttributeError(f"module 'corebound' has no attribute {name!r}{hint}")
