"""Fills what is left of a model on the meta device once its matrices are split."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from corebound.errors import ShardingError
from corebound.sharding.modules.sources import WeightSource


def fill_meta(model: nn.Module, source: WeightSource) -> None:
    """Replace the parameters and buffers that are still on the meta device: read them whole, or compute them again.

    Raises: ModelLoadError for one that the source lacks, ShardingError for a buffer that the model cannot compute.
    """
    for name, module in list(model.named_modules()):
        prefix = f"{name}." if name else ""
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                setattr(module, leaf, nn.Parameter(source.whole(prefix + leaf), requires_grad=False))
        meta = [leaf for leaf, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        stored = [leaf for leaf in meta if leaf not in module._non_persistent_buffers_set]
        for leaf in stored:
            setattr(module, leaf, source.whole(prefix + leaf))
        computed = [leaf for leaf in meta if leaf not in stored]
        if computed:
            _compute(model, module, computed, prefix)


def _compute(model: Any, module: nn.Module, buffers: list[str], prefix: str) -> None:
    """Compute buffers that no checkpoint has, such as the frequencies of rotary positions, as transformers does."""
    for leaf in buffers:
        old: torch.Tensor = getattr(module, leaf)
        # float32 whatever type the model was cast to: from_pretrained keeps positions in it too.
        setattr(module, leaf, torch.full(old.shape, float("nan"), dtype=torch.float32, device="cpu"))
    parameters = list(module.parameters(recurse=False))
    if not parameters and hasattr(model, "_init_weights"):
        with torch.no_grad():
            model._init_weights(module)
    for leaf in buffers:
        value: torch.Tensor = getattr(module, leaf)
        if value.is_meta or bool(value.isnan().any()):
            raise ShardingError(
                f"{prefix}{leaf}: a buffer on the meta device that the model cannot compute again",
                hint="build the model with its buffers on the CPU and only its parameters on the meta device",
            )
