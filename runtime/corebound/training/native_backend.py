"""Backend `native` of `optimize`: converts the weights and puts Corebound's linear operator under the module."""

from __future__ import annotations

import torch
from torch import nn

from corebound import kernels, logs
from corebound.training.linear import NativeLinear
from corebound.training.report import Change, OptimizationReport

_log = logs.get_logger(__name__)


def optimize(model: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, OptimizationReport]:
    """Change `model` in place and return it, or what replaces it where it is itself a linear layer, with the report.

    Raises: KernelError when `COREBOUND_ISA` or `COREBOUND_KERNELS` ask for what cannot run.
    """
    row = next(row for row in kernels.table() if row["op"] == "linear")
    num_converted = _convert(model, dtype)
    model, changes = _replace_linears(model)
    if not any(change.after for change in changes):
        _log.warning("optimize: %s has no torch.nn.Linear that can be replaced", type(model).__name__)
    notes = [
        f"{num_converted} parameters and stored buffers converted to {str(dtype).removeprefix('torch.')}",
        f"linear runs on {row['implementation']} ({row['variant']}: {row['reason']})",
    ]
    return model, OptimizationReport(
        backend="native", dtype=str(dtype).removeprefix("torch."), changes=tuple(changes), notes=tuple(notes)
    )


def _convert(model: nn.Module, dtype: torch.dtype) -> int:
    """Convert floating-point parameters and stored buffers one by one, and return how many; no copy of all exists.

    Buffers that are not stored with the model are tables that it computes, such as rotary frequencies: they keep the
    precision that it computed them in.
    """
    num_converted = 0
    for module in model.modules():
        stored = {
            name: buffer
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        }
        for tensor in (*module.parameters(recurse=False), *stored.values()):
            if tensor.is_floating_point() and tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)
                num_converted += 1
    return num_converted


def _replace_linears(model: nn.Module) -> tuple[nn.Module, list[Change]]:
    changes: list[Change] = []
    replacements: dict[int, NativeLinear] = {}
    # A list, because the tree changes on the way; a layer that stands in two places is one layer afterwards too.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, nn.Linear) or isinstance(module, NativeLinear):
            continue
        reason = _reason_to_keep(module)
        if reason:
            changes.append(Change(name, type(module).__name__, None, reason))
            continue
        replacement = replacements.setdefault(id(module), NativeLinear.adopt(module))
        changes.append(Change(name, type(module).__name__, type(replacement).__name__))
        if name == "":
            return replacement, changes
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, replacement)
    return model, changes


def _reason_to_keep(module: nn.Linear) -> str:
    """Return why a layer must stay as it is, or nothing."""
    if type(module) is not nn.Linear:
        return "a class of its own, which may compute something else"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it has hooks"
    return ""
