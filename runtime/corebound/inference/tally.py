"""How much of a checkpoint this rank has read, and how much it will."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from corebound.inference.stored import StoredTensor
from corebound.sharding.reading import Meter, Progress


class Tally(Meter):
    """Counts bytes, of a total that is an estimate at first: which part of a tensor a rank takes shows when it does.

    Until then a matrix counts with this rank's share, a vector whole.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], num_ranks: int, progress: Progress | None) -> None:
        self._estimates = {
            name: tensor.num_bytes() // (num_ranks if len(tensor.shape) > 1 else 1) for name, tensor in tensors.items()
        }
        super().__init__(sum(self._estimates.values()), progress)

    def expect(self, tensor: StoredTensor, dim: int, ranges: Sequence[range] | None) -> None:
        """Put what is about to be read of a tensor in place of its estimate."""
        num_bytes = tensor.num_bytes()
        if ranges is not None and tensor.shape:
            num_bytes = num_bytes // max(1, tensor.shape[dim]) * sum(len(part) for part in ranges)
        self.num_bytes += num_bytes - self._estimates.pop(tensor.name, 0)
