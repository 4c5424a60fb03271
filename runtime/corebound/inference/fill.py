"""Gives every tensor of a model its values and its type: those sharding did not touch, and those without memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from corebound.errors import ModelLoadError
from corebound.inference.sources import CheckpointSource

_MAX_LISTED = 6


def on_meta(module: nn.Module) -> bool:
    """Return whether any parameter of the module is without memory."""
    return any(parameter.is_meta for parameter in module.parameters())


def convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert floating-point parameters and stored buffers one by one; no copy of the whole model exists.

    Buffers that are not stored with the model are tables that it computes, such as rotary frequencies: they keep the
    precision that it computed them in.
    """
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *_stored_buffers(part).values()):
            if tensor.is_floating_point() and tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)


def fill(module: nn.Module, source: CheckpointSource, dtype: torch.dtype) -> None:
    """Read every tensor that is still on the meta device, and let the model compute the tables that are not stored.

    Raises: ModelLoadError naming what is left.
    """
    # With the empty parameter beside the filled one: an object that is gone could lend its id to another.
    filled: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for prefix, part in module.named_modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_meta:
                whole = f"{prefix}.{name}" if prefix else name
                # One object again where it was one, so that tied weights stay tied.
                if id(parameter) not in filled:
                    values = _typed(source.whole(whole), dtype)
                    filled[id(parameter)] = (parameter, nn.Parameter(values, requires_grad=False))
                setattr(part, name, filled[id(parameter)][1])
        for name, buffer in _stored_buffers(part).items():
            whole = f"{prefix}.{name}" if prefix else name
            if buffer.is_meta and source.has(whole):
                part.register_buffer(name, _typed(source.whole(whole), dtype))
    _compute_tables(module)


def whole_vectors(module: nn.Module, source: CheckpointSource | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return copies of the parameters of one dimension, such as norms, by name: they are small.

    Raises: ModelLoadError.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            whole = source.whole(name) if source is not None and parameter.is_meta else parameter.detach().clone()
            found[name] = _typed(whole, dtype)
    return found


def require_filled(module: nn.Module) -> None:
    """Raise ModelLoadError, naming them, when tensors are still on the meta device."""
    left = list(_left(module))
    if left:
        more = f" and {len(left) - _MAX_LISTED} more" if len(left) > _MAX_LISTED else ""
        raise ModelLoadError(
            f"init_inference: {len(left)} tensors of {type(module).__name__} have no values, because the model was "
            f"made on the meta device: {', '.join(left[:_MAX_LISTED])}{more}",
            hint="name its weights: checkpoint=DIRECTORY, or a JSON list of files",
        )


def _left(module: nn.Module) -> Iterator[str]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            yield name


def _compute_tables(module: nn.Module) -> None:
    """Give buffers that are not stored memory, and the values that transformers computes when it makes the module."""
    initialize = getattr(module, "_init_weights", None)
    for part in module.modules():
        tables = [name for name, buffer in part.named_buffers(recurse=False) if buffer.is_meta]
        tables = [name for name in tables if name in part._non_persistent_buffers_set]
        if not tables or initialize is None:
            continue
        for parameter in part.parameters(recurse=False):
            # transformers' mark of tensors that its initialization leaves alone.
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # theirs, not torch's
        # From two different beginnings: a table that is not computed shows by keeping them.
        computed = []
        for beginning in (0, 1):
            for name in tables:
                part.register_buffer(
                    name, torch.full_like(part.get_buffer(name), beginning, device="cpu"), persistent=False
                )
            initialize(part)
            computed.append([part.get_buffer(name) for name in tables])
        wrong = [name for name, one, other in zip(tables, *computed, strict=True) if not torch.equal(one, other)]
        if wrong:
            raise ModelLoadError(
                f"init_inference: {type(part).__name__} does not compute {', '.join(wrong)} anew, and no file has it",
                hint="make the model outside of the meta device",
            )


def _stored_buffers(part: nn.Module) -> dict[str, Tensor]:
    hidden = part._non_persistent_buffers_set
    return {name: buffer for name, buffer in part.named_buffers(recurse=False) if name not in hidden}


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
