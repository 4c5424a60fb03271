"""Where `init_inference` takes weights from, in the type that it computes in; remembers what this rank took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from corebound.config.suggest import nearest
from corebound.errors import ModelLoadError
from corebound.inference.stored import StoredTensor
from corebound.inference.tally import Tally
from corebound.sharding.checkpoint import Checkpoint
from corebound.sharding.modules.sources import CheckpointSource as FileSource
from corebound.sharding.modules.sources import ModelSource, WeightSource


class Taken(NamedTuple):
    """The part of a tensor that a rank took: ranges of a dimension, and the shape of the whole."""

    dim: int
    ranges: tuple[range, ...]
    shape: tuple[int, ...]


class CheckpointSource:
    """The tensors of a checkpoint, by the names that the model has for them, floats in `dtype`.

    `tally` is told of what is read.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, StoredTensor],
        dtype: torch.dtype,
        tally: Tally | None = None,
    ) -> None:
        self._dtype, self._tally = dtype, tally or Tally({}, 1, None)
        self._prefix: str = f"{getattr(model, 'base_model_prefix', '')}."
        self._tensors = tensors
        whole = {name: tensor.entry for name, tensor in tensors.items() if tensor.entry is not None}
        # It also knows names that checkpoints have for parameters that transformers joins, such as experts.
        self._files: FileSource | None = None
        if len(whole) == len(tensors):
            self._files = FileSource(model, Checkpoint(whole, {}), self._tally, dtype)
        # A tied parameter has several names, of which the checkpoint has one.
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        self._others = {name: group for group in names.values() for name in group}
        state = model.state_dict(keep_vars=True)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        # Such as the head of a model that ties it, and tables that older versions stored.
        names_of_one = {id(tensor): name for name, tensor in reversed(state.items())}
        taken = {stored.name for name in names_of_one.values() for stored in self._stored(name)}
        self._tally.leave_out(tensors.keys() - taken)

    def part(self, name: str, dim: int, ranges: Sequence[range]) -> Tensor:
        """Return the ranges of one dimension, one after the other.

        Shapes: as the tensor, but `dim` has the length of the ranges.
        Raises: ModelLoadError naming the tensor.
        """
        if self._files is not None and not self.has(name):
            self._tally.expect(self._stored(name), sum(len(part) for part in ranges), self._shapes[name][dim])
            return self._files.part(name, dim, ranges)
        return self._read(self._find(name), dim, ranges)

    def whole(self, name: str) -> Tensor:
        """Return a whole tensor, in the shape that the model has it in.

        Raises: ModelLoadError naming the tensor.
        """
        if self._files is not None and not self.has(name):
            self._tally.expect(self._stored(name))
            return self._files.whole(name)
        return self._read(self._find(name), 0, None)

    def _read(self, stored: StoredTensor, dim: int, ranges: Sequence[range] | None) -> Tensor:
        if ranges is None or not stored.shape:
            self._tally.expect([stored])
        else:
            self._tally.expect([stored], sum(len(part) for part in ranges), stored.shape[dim])
        return stored.read(dim, ranges, dtype=self._dtype, meter=self._tally)

    def _stored(self, name: str) -> list[StoredTensor]:
        """Return the checkpoint's tensors that have the values of one of the model; nothing where there are none."""
        own = self._stored_name(name)
        names = (own,) if own is not None else self._files.stored_names(name) if self._files is not None else ()
        return [self._tensors[name] for name in names]

    def has(self, name: str) -> bool:
        """Return whether the checkpoint has a tensor for this name of the model."""
        return self._stored_name(name) is not None

    def _find(self, name: str) -> StoredTensor:
        stored_name = self._stored_name(name)
        if stored_name is None:
            close = nearest(name, self._tensors)
            raise ModelLoadError(
                f"checkpoint: no tensor for parameter {name!r} of the model",
                hint=f"the nearest is `{close}`" if close else "model and checkpoint must be of one architecture",
            )
        stored = self._tensors[stored_name]
        expected = self._shapes.get(name)
        if expected is not None and expected != stored.shape:
            raise ModelLoadError(
                f"checkpoint: tensor {stored_name!r}: expected shape {list(expected)}, found {list(stored.shape)}",
                hint="the configuration of the model must be that of the checkpoint",
            )
        return stored

    def _stored_name(self, name: str) -> str | None:
        for other in (name, *self._others.get(name, ())):
            candidates: tuple[str, ...] = (other, other.removeprefix(self._prefix), self._prefix + other)
            for candidate in candidates:
                if candidate in self._tensors:
                    return candidate
        return None


class TakingSource:
    """Another source, converted to `dtype`; `taken` has what was taken of each tensor."""

    def __init__(self, model: nn.Module, inner: WeightSource | None, dtype: torch.dtype) -> None:
        self._inner = inner if inner is not None else ModelSource(model)
        self._dtype = dtype
        self.taken: dict[str, Taken] = {}
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}

    def part(self, name: str, dim: int, ranges: Sequence[range]) -> Tensor:
        """Return the ranges of one dimension, one after the other.

        Shapes: as the tensor, but `dim` has the length of the ranges.
        Raises: whatever the source within raises.
        """
        shape = self._shapes[name]
        if sum(len(part) for part in ranges) != shape[dim]:
            self.taken[name] = Taken(dim, tuple(ranges), shape)
        return self._converted(self._inner.part(name, dim, ranges))

    def whole(self, name: str) -> Tensor:
        """Return a whole tensor, in its own shape.

        Raises: whatever the source within raises.
        """
        return self._converted(self._inner.whole(name))

    def _converted(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor
