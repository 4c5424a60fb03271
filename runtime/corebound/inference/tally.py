"""How much of a checkpoint this rank has read, and how much it will."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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

    def leave_out(self, names: Iterable[str]) -> None:
        """Take tensors that no rank will read out of the total."""
        self.num_bytes -= sum(self._estimates.pop(name, 0) for name in names)

    def expect(self, tensors: Sequence[StoredTensor], num_taken: int = 1, num_all: int = 1) -> None:
        """Put what is about to be read of tensors, `num_taken` of `num_all` slices, in place of their estimates."""
        num_bytes = sum(tensor.num_bytes() for tensor in tensors) // num_all * num_taken
        self.num_bytes += num_bytes - sum(self._estimates.pop(tensor.name, 0) for tensor in tensors)
