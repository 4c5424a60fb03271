"""Rooms in which the keys and values of a layer lie token by token, as the attention operator reads them in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corebound import kernels


@dataclass(frozen=True)
class RowStore:
    """Keys or values as blocks of one token, `num_rows` of them for a sequence, of which those from `first` on count.

    Shapes: blocks [B * num_rows, Hkv, 1, D].
    """

    blocks: Tensor
    num_rows: int
    first: int = 0

    def states(self, batch: int, num_keys: int) -> Tensor:
        """Return a view of the keys or values that count.

        Shapes: [B, Hkv, T, D].
        """
        rows = self.blocks.view(batch, self.num_rows, *self.blocks.shape[1::2])
        return rows[:, self.first : self.first + num_keys].transpose(1, 2)


class Room:
    """Rows for keys and values of `batch` sequences, filled from the front up to `stop`."""

    def __init__(self, batch: int, num_rows: int, like: Tensor) -> None:
        self.batch, self.num_rows, self.stop = batch, num_rows, 0
        shape = (batch, num_rows, *like.shape[-2:])
        # Made outside of inference mode, because a cache may be used within it once and without it later.
        with torch.inference_mode(False):
            self._keys, self._values = (torch.zeros(shape, dtype=like.dtype) for _ in range(2))

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Add as many tokens to each sequence as there are.

        Shapes: [B * S, Hkv, D].
        """
        num_tokens = keys.shape[0] // self.batch
        slots = torch.arange(self.batch).unsqueeze(1) * self.num_rows + torch.arange(self.stop, self.stop + num_tokens)
        key_rows, value_rows = (part.flatten(0, 1).unsqueeze(2) for part in (self._keys, self._values))
        kernels.store_kv(keys, values, key_rows, value_rows, slots.flatten())
        self.stop += num_tokens

    def take(self, keys: Tensor, values: Tensor) -> None:
        """Fill the empty room with what a cache holds.

        Shapes: [B, Hkv, T, D].
        """
        self.stop = keys.shape[2]
        for room, states in ((self._keys, keys), (self._values, values)):
            room[:, : self.stop] = states.transpose(1, 2)

    def take_reordered(self, other: Room, order: Tensor) -> None:
        """Fill the room with the sequences of another in a new order.

        Shapes: order [B] int64.
        """
        self.stop = other.stop
        for room, source in ((self._keys, other._keys), (self._values, other._values)):
            torch.index_select(source[:, : other.stop], 0, order, out=room[:, : other.stop])

    def twin(self) -> Room:
        """Return an empty room of the same size."""
        return Room(self.batch, self.num_rows, self._keys)

    def states(self, first: int) -> tuple[Tensor, Tensor]:
        """Return views of the keys and values from row `first` on.

        Shapes: [B, Hkv, T, D].
        """
        keys, values = (part[:, first : self.stop].transpose(1, 2) for part in (self._keys, self._values))
        return keys, values

    def stores(self, first: int) -> tuple[RowStore, RowStore]:
        """Return the keys and values from row `first` on, for the attention operator."""
        keys, values = (part.flatten(0, 1).unsqueeze(2) for part in (self._keys, self._values))
        return RowStore(keys, self.num_rows, first), RowStore(values, self.num_rows, first)


def rows_of(states: Tensor) -> RowStore:
    """Return keys or values as rows: a view where their memory allows it, a copy where not.

    Shapes: [B, Hkv, T, D].
    """
    rows = states.transpose(1, 2).contiguous()
    return RowStore(rows.flatten(0, 1).unsqueeze(2), rows.shape[1])
