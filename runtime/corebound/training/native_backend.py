"""Backend `native` of `optimize`: converts the weights and puts Corebound's operators under the module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from corebound import kernels, logs
from corebound.kernels.panel_format import PanelFormat
from corebound.quantization.reference import dequantize
from corebound.quantization.rtn import quantize
from corebound.training.linear import NativeLinear
from corebound.training.mlp import gated_mlp
from corebound.training.norms import native_norm
from corebound.training.packed_linear import PackedLinear
from corebound.training.report import Change, OptimizationReport
from corebound.training.request import Request

_log = logs.get_logger(__name__)
_OWN_CLASS = "a class of its own, which may compute something else"
_HOOKED = "it has hooks"


def optimize(model: nn.Module, request: Request) -> tuple[nn.Module, OptimizationReport]:
    """Change `model` in place and return it, or what replaces it where it is itself a linear layer, with the report.

    Raises: KernelError when `COREBOUND_ISA` or `COREBOUND_KERNELS` ask for what cannot run.
    """
    row = next(row for row in kernels.table() if row["op"] == "linear")
    work = _Work(request, native=row["implementation"] == "native")
    num_converted = _convert(model, request.dtype)
    work.shared, work.head = _shared_weights(model), _head_of(model)
    if work.packs or request.scheme is not None:
        model.requires_grad_(False)
    for step in (work.fuse_mlp, work.replace_norm, work.replace_linear):
        model = work.walk(model, step)
    if not any(change.after and change.before == "Linear" for change in work.changes):
        _log.warning("optimize: %s has no torch.nn.Linear that can be replaced", type(model).__name__)
    if request.scheme is not None and not work.native:
        _log.warning("optimize: %s weights are rounded and kept as bfloat16: native kernels are off", request.name)
    notes = [
        f"{num_converted} parameters and stored buffers converted to {str(request.dtype).removeprefix('torch.')}",
        f"linear runs on {row['implementation']} ({row['variant']}: {row['reason']})",
    ]
    if request.scheme is not None:
        notes.append("embeddings, the output head, norms and biases keep bfloat16")
    if work.num_packed:
        notes.append(
            f"{work.num_packed} matrices packed, {work.bytes_before} bytes of bfloat16 became {work.bytes_after}; "
            "parameters are frozen, state_dict() has the weights that the layers compute with, in bfloat16"
        )
    changes = tuple(sorted(work.changes, key=lambda change: change.name))
    return model, OptimizationReport(backend="native", dtype=request.name, changes=changes, notes=tuple(notes))


@dataclass
class _Work:
    """What is done to one model, and what was done so far."""

    request: Request
    native: bool
    shared: set[int] = field(default_factory=set)
    head: nn.Module | None = None
    changes: list[Change] = field(default_factory=list)
    num_packed: int = 0
    bytes_before: int = 0
    bytes_after: int = 0

    @property
    def packs(self) -> bool:
        """Whether matrices go into panels: prompts are faster from them, single tokens as fast as from plain rows."""
        return self.native and self.request.dtype == torch.bfloat16 and self.request.packs is not False

    def walk(self, model: nn.Module, step: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
        """Replace the submodules for which `step` returns another, and return the model or what replaces it."""
        # A list, because the tree changes on the way; a layer that stands in two places is one layer afterwards too.
        replacements: dict[int, nn.Module] = {}
        for name, module in list(model.named_modules(remove_duplicate=False)):
            replacement = replacements[id(module)] if id(module) in replacements else step(name, module)
            if replacement is None:
                continue
            replacements[id(module)] = replacement
            self.changes.append(Change(name, type(module).__name__, type(replacement).__name__))
            if name == "":
                return replacement
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, replacement)
        return model

    def fuse_mlp(self, name: str, module: nn.Module) -> nn.Module | None:
        """Return the fused form of a gated MLP that is known."""
        if not (self.packs and self.request.fuses) or _has_hooks(module):
            return None
        found = gated_mlp(module, self.request.scheme)
        if isinstance(found, str):
            self.changes.append(Change(name, type(module).__name__, None, found))
            return None
        if found is not None:
            self._count(found.gate_up)
        return found

    def replace_norm(self, name: str, module: nn.Module) -> nn.Module | None:
        """Return a norm over our operators."""
        if not self.request.fuses or _has_hooks(module):
            return None
        return native_norm(module)

    def replace_linear(self, name: str, module: nn.Module) -> nn.Module | None:
        """Return a linear layer over our operators, packed where that is asked for or pays."""
        if not isinstance(module, nn.Linear) or isinstance(module, NativeLinear):
            return None
        reason = _OWN_CLASS if type(module) is not nn.Linear else _HOOKED if _has_hooks(module) else ""
        if reason:
            self.changes.append(Change(name, type(module).__name__, None, reason))
            return None
        if module is self.head or id(module.weight) in self.shared:
            # A shared weight is also read as it is: packed there would be two of it. Heads are not rounded in the
            # engine either.
            return NativeLinear.adopt(module)
        if self.packs and (self.request.packs or self.request.scheme or not _mostly_padding(module)):
            packed = PackedLinear.adopt(module, self.request.scheme)
            self._count(packed)
            return packed
        if self.request.scheme is not None:
            module.weight.data = dequantize(quantize(module.weight.data, self.request.scheme), module.weight.dtype)
        return NativeLinear.adopt(module)

    def _count(self, packed: PackedLinear) -> None:
        self.num_packed += 1
        self.bytes_before += 2 * sum(packed.rows) * packed.in_features
        self.bytes_after += packed.panels.numel()


def _mostly_padding(linear: nn.Linear) -> bool:
    """Return whether a matrix is so small that panels of it would be padding for the most part."""
    plain_bytes = 2 * linear.out_features * linear.in_features
    return PanelFormat().matrix_bytes(linear.out_features, linear.in_features) > 2 * plain_bytes


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _head_of(model: nn.Module) -> nn.Module | None:
    """Return the output head of a model of transformers, None for any other module."""
    function = getattr(model, "get_output_embeddings", None)
    head = function() if callable(function) else None
    return head if isinstance(head, nn.Module) else None


def _shared_weights(model: nn.Module) -> set[int]:
    """Return the identities of the weights that several modules have."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


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
