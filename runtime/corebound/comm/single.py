"""The provider for a group of one: every operation is the identity."""

from __future__ import annotations

import json
from typing import Any

import torch

from corebound.comm.base import check_root
from corebound.errors import CommError


class SingleCollectives:
    """Collectives of a group with one member."""

    name = "single"
    rank = 0
    size = 1

    def __init__(self, rank: int = 0) -> None:
        self.ranks: tuple[int, ...] = (rank,)

    def all_reduce(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Return `tensor`, of any shape."""
        return tensor

    def all_gather(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Return a copy of `tensor` with a leading dimension of 1. Shapes: [*shape] -> [1, *shape]."""
        return tensor.unsqueeze(0).clone()

    def broadcast(self, tensor: torch.Tensor, root: int = 0, timeout_s: float | None = None) -> torch.Tensor:
        """Return `tensor`, of any shape. Raises: CommError for a root other than 0."""
        check_root(root, 1)
        return tensor

    def barrier(self, timeout_s: float | None = None) -> None:
        """Return at once."""

    def broadcast_object(self, obj: Any, root: int = 0, timeout_s: float | None = None) -> Any:
        """Return `obj` as it would arrive on another rank.

        Raises: CommError for a root other than 0 and for what JSON cannot carry.
        """
        check_root(root, 1)
        try:
            return json.loads(json.dumps(obj))
        except (TypeError, ValueError) as error:
            raise CommError(f"broadcast_object: rank 0 holds an object that JSON cannot carry: {error}") from error

    def close(self) -> None:
        """Do nothing."""
