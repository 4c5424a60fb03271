"""Keys and values of a layer behind the cache of transformers, in rows that the attention operator reads in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from corebound import kernels
from corebound.errors import KernelError

_SPARE_ROWS = 64


class RowStore:
    """Rows of one layer's keys or values as blocks of one token each, `num_rows` of them for a sequence.

    Shapes: blocks [B * num_rows, Hkv, 1, D].
    """

    def __init__(self, blocks: Tensor, num_rows: int) -> None:
        self.blocks = blocks
        self.num_rows = num_rows


class RowLayer(DynamicLayer):
    """A layer of a DynamicCache that grows in place, token by token, where the original copies all it holds.

    `keys` and `values` are views [B, Hkv, T, D], so that everything in transformers that reads or replaces them works.
    """

    def __init__(self) -> None:
        DynamicLayer.__init__(self)
        self._room: tuple[Tensor, Tensor] | None = None
        self._spare: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Store the tokens' keys and values in the rows that `reserve` made, and show them.

        Shapes: keys and values [B * S, Hkv, D]; slots [B * S] int64.
        """
        assert self._room is not None, "reserve comes first"
        batch = self._room[0].shape[0]
        length = self.get_seq_length() + keys.shape[0] // batch
        room_keys, room_values = (_blocks(part) for part in self._room)
        kernels.store_kv(keys, values, room_keys, room_values, slots)
        self._show(length)

    def reserve(self, batch: int, num_tokens: int, like: Tensor) -> int:
        """Make room for `num_tokens` more of each sequence and return the rows that a sequence has.

        Shapes: like [tokens, Hkv, D].

        Raises: KernelError when the cache holds another number of sequences.
        """
        if not self.is_initialized:
            self.lazy_initialization(like, like)
        length = self.get_seq_length()
        if length and self._views()[0].shape[0] != batch:
            raise KernelError(
                f"cache: it holds {self._views()[0].shape[0]} sequences, expected {batch} as in the inputs",
                hint="a cache belongs to the batch that it was filled with",
            )
        if not self._fits(batch, length + num_tokens):
            # Doubling keeps the copies of a long generation at one of each row.
            num_rows = max(length + num_tokens + _SPARE_ROWS, 2 * length)
            self._fill(_new_room(batch, num_rows, like), length)
        assert self._room is not None
        return self._room[0].shape[1]

    def stores(self) -> tuple[RowStore, RowStore]:
        """Return the rows of keys and of values."""
        assert self._room is not None, "append comes first"
        keys, values = self._room
        return RowStore(_blocks(keys), keys.shape[1]), RowStore(_blocks(values), values.shape[1])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values as a block of transformers' own does, and return all of them.

        Shapes: [B, Hkv, S, D] -> [B, Hkv, T, D].
        """
        batch, _, num_tokens, _ = key_states.shape
        length = self.get_seq_length()
        num_rows = self.reserve(batch, num_tokens, key_states.transpose(1, 2).flatten(0, 1))
        keys, values = (part.transpose(1, 2).flatten(0, 1) for part in (key_states, value_states))
        self.append(keys, values, slots_of(batch, num_tokens, length, num_rows))
        return self._views()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let every sequence continue from the one that `beam_idx` names."""
        length = self.get_seq_length()
        if not length:
            return
        if not self._fits(beam_idx.shape[0], length):
            self.keys, self.values = (view.index_select(0, beam_idx) for view in self._views())
            return
        assert self._room is not None
        if self._spare is None or self._spare[0].shape != self._room[0].shape:
            self._spare = _twin(self._room)
        for source, target in zip(self._room, self._spare, strict=True):
            torch.index_select(source[:, :length], 0, beam_idx, out=target[:, :length])
        self._room, self._spare = self._spare, self._room
        self._show(length)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._room = self._spare = None

    def _fits(self, batch: int, length: int) -> bool:
        """Return whether keys and values are views of the room, and it has `length` rows for each sequence."""
        if self._room is None or self._room[0].shape[0] != batch or self._room[0].shape[1] < length:
            return False
        pairs = zip(self._views(), self._room, strict=True)
        return all(view.data_ptr() == room.data_ptr() for view, room in pairs)

    def _views(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None, "reserve comes first"
        assert self.values is not None, "reserve comes first"
        return self.keys, self.values

    def _fill(self, room: tuple[Tensor, Tensor], length: int) -> None:
        for view, part in zip(self._views(), room, strict=True):
            if length:
                part[:, :length] = view.transpose(1, 2)
        self._room, self._spare = room, None
        self._show(length)

    def _show(self, length: int) -> None:
        assert self._room is not None
        keys, values = self._room
        self.keys, self.values = keys[:, :length].transpose(1, 2), values[:, :length].transpose(1, 2)


def row_layer(cache: Cache, index: int) -> RowLayer | None:
    """Return the cache's layer as one that grows in place, or None for a cache of another kind (static, quantised...).

    What a plain DynamicLayer holds is taken over.
    """
    if getattr(cache, "offloading", False):
        return None
    if cache.layer_class_to_replicate is DynamicLayer:
        while len(cache.layers) <= index:
            cache.layers.append(RowLayer())
    if index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    if isinstance(layer, RowLayer):
        return layer
    if type(layer) is not DynamicLayer:
        return None
    taken = RowLayer()
    if layer.keys is not None and layer.values is not None and layer.get_seq_length():
        taken.update(layer.keys, layer.values)
    cache.layers[index] = taken
    return taken


def rows_of(states: Tensor) -> RowStore:
    """Return keys or values as rows: a view where their memory allows it, a copy where not.

    Shapes: [B, Hkv, T, D].
    """
    rows = states.transpose(1, 2).contiguous()
    return RowStore(_blocks(rows), rows.shape[1])


def slots_of(batch: int, num_tokens: int, length: int, num_rows: int) -> Tensor:
    """Return the rows for `num_tokens` more tokens of sequences that hold `length`.

    Shapes: [B * S] int64.
    """
    first = torch.arange(batch).unsqueeze(1) * num_rows + length
    return (first + torch.arange(num_tokens)).flatten()


def _blocks(rows: Tensor) -> Tensor:
    return rows.flatten(0, 1).unsqueeze(2)


def _new_room(batch: int, num_rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
    # Made outside of inference mode, because a cache may be used within it once and without it later.
    with torch.inference_mode(False):
        shape = (batch, num_rows, *like.shape[1:])
        return torch.zeros(shape, dtype=like.dtype), torch.zeros(shape, dtype=like.dtype)


def _twin(room: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return torch.zeros_like(room[0]), torch.zeros_like(room[1])
