"""Where the parts of the weights come from: the model itself, or the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class WeightSource(Protocol):
    """What yields parts of named tensors, as a model's state_dict names them."""

    def part(self, name: str, dim: int, ranges: Sequence[range]) -> Tensor:
        """Return the ranges of one dimension of a tensor, one after the other, as a tensor of its own.

        Raises: ModelLoadError naming the tensor.
        """

    def whole(self, name: str) -> Tensor:
        """Return a whole tensor.

        Raises: ModelLoadError naming the tensor.
        """


class ModelSource:
    """The weights that a model holds."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def part(self, name: str, dim: int, ranges: Sequence[range]) -> Tensor:
        """Return a copy of the ranges, so that the whole tensor can be freed."""
        whole = self.whole(name)
        pieces = [whole.narrow(dim, part.start, len(part)) for part in ranges]
        return torch.cat(pieces, dim).contiguous() if len(pieces) > 1 else pieces[0].clone().contiguous()

    def whole(self, name: str) -> Tensor:
        """Return the parameter or buffer itself."""
        owner, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self._model.get_submodule(owner), leaf)
        return tensor.detach()
