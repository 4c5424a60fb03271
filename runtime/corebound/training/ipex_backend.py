"""Backend `ipex` of `optimize`: hands the module to Intel Extension for PyTorch where that is installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import re
import sys
from typing import Any

import torch
from torch import nn

from corebound.errors import ConfigError, HostError, ModelError
from corebound.training.report import OptimizationReport, module_types, type_changes
from corebound.training.request import Request

PACKAGE = "intel_extension_for_pytorch"
WHY_OFF = (
    "it is off by default because it was archived upstream on 30 March 2026: its last release, 2.8.0, needs torch 2.8. "
    "The role `ipex` (docs/ipex.md) installs it with that torch in an environment of its own"
)

# The architectures of transformers that ipex.llm.optimize 2.8.0 has code for. Given another, it falls back by itself,
# which we would rather decide and report.
LLM_ARCHITECTURES = frozenset(
    {
        "BloomForCausalLM",
        "CodeGenForCausalLM",
        "FalconForCausalLM",
        "GPTBigCodeForCausalLM",
        "GPTJForCausalLM",
        "GPTNeoXForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "MptForCausalLM",
        "OPTForCausalLM",
        "Phi3ForCausalLM",
        "PhiForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "StableLmForCausalLM",
        "T5ForConditionalGeneration",
    }
)


def optimize(model: nn.Module, request: Request) -> tuple[nn.Module, OptimizationReport]:
    """Return the module as ipex.llm.optimize makes it for a family that it knows, else as ipex.optimize does.

    Raises: ConfigError for a scheme, or packing that is asked for or against; HostError when the extension is not
    installed or does not fit this torch; ModelError when it fails.
    """
    if request.scheme is not None or request.packs is not None or not request.fuses:
        raise ConfigError(
            "optimize: quantization, weights_prepack and fuse are for backend native; the extension packs and fuses "
            "as it sees fit",
            hint='leave them out, or use backend="native"',
        )
    dtype = request.dtype
    ipex = _extension()
    architecture = _architecture(model)
    name = "ipex.llm.optimize" if architecture in LLM_ARCHITECTURES else "ipex.optimize"
    before = module_types(model)
    function = ipex.llm.optimize if architecture in LLM_ARCHITECTURES else ipex.optimize
    try:
        # It prints; standard output is the caller's, for data.
        with contextlib.redirect_stdout(sys.stderr):
            optimized = function(model, dtype=dtype, inplace=True)
    # It raises whatever its parts raise; all of it means that this model stays without it.
    except Exception as error:
        raise ModelError(
            f"optimize: {name} failed on {architecture or type(model).__name__}: {type(error).__name__}: {error}",
            hint='the module may be half changed; load it again, or use backend="native"',
        ) from error
    changes = type_changes(before, module_types(optimized))
    if not changes:
        raise ModelError(
            f"optimize: {name} changed nothing in {architecture or type(model).__name__}", hint='use backend="native"'
        )
    notes = (f"by {name} {ipex.__version__}", WHY_OFF)
    return optimized, OptimizationReport(
        backend="ipex", dtype=str(dtype).removeprefix("torch."), changes=changes, notes=notes
    )


def _architecture(model: nn.Module) -> str | None:
    """Return the architecture that a model of transformers says it has, None for another module."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "architectures"):
        return None
    if not config.architectures:
        # ipex.llm.optimize would end in "'NoneType' object is not subscriptable".
        raise ConfigError(
            "optimize: model.config.architectures is empty, and backend ipex chooses by it",
            hint=f'set it, such as model.config.architectures = ["{type(model).__name__}"]',
        )
    return str(config.architectures[0])


def _extension() -> Any:
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise HostError(
            f'optimize: backend "ipex" needs {PACKAGE}, which is not installed here (torch {torch.__version__})',
            hint=WHY_OFF,
        ) from None
    # Compared before the import: on a torch that does not fit, the extension's own check ends in an AttributeError.
    if _major_minor(version) != _major_minor(torch.__version__):
        raise HostError(
            f"optimize: {PACKAGE} {version} needs torch {_major_minor(version)}, found torch {torch.__version__}",
            hint=WHY_OFF,
        )
    try:
        return importlib.import_module(PACKAGE)
    except (ImportError, OSError) as error:
        raise HostError(f"optimize: {PACKAGE} {version} does not load: {error}", hint=WHY_OFF) from error


def _major_minor(version: str) -> str:
    match = re.match(r"\d+\.\d+", version)
    return match[0] if match else version
