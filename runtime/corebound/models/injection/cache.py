"""Layers of a transformers cache that grow in place, and putting them where transformers has its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from corebound.errors import KernelError
from corebound.models.injection.rows import Room, RowStore

# Rows made beyond those needed at once, so that a cache does not move at every token.
_SPARE_ROWS = 64

Stored = tuple[tuple[RowStore, RowStore], int]


class _Shown:
    """A room and the views of it that a layer shows as its keys and values.

    Whoever replaces these, as much of transformers does, thereby leaves the room: what it put there is the truth.
    """

    def __init__(self, room: Room, first: int) -> None:
        self.room = room
        self.keys, self.values = room.states(first)

    def room_for(self, layer: DynamicLayer, batch: int, num_tokens: int) -> Room | None:
        """Return the room if the layer still shows it and it has place for `num_tokens` more of each sequence."""
        if layer.keys is not self.keys or layer.values is not self.values:
            return None
        fits = self.room.batch == batch and self.room.stop + num_tokens <= self.room.num_rows
        return self.room if fits else None


class RowLayer(DynamicLayer):
    """A layer that adds tokens in place, where the original copies all it holds.

    `keys` and `values` are views [B, Hkv, T, D], so that everything in transformers that reads or replaces them works.
    """

    def __init__(self) -> None:
        DynamicLayer.__init__(self)
        self._shown: _Shown | None = None
        self._spare: Room | None = None

    def append(self, keys: Tensor, values: Tensor, batch: int) -> Stored:
        """Add tokens; return the rows of all keys and of all values, and how many each sequence has.

        Shapes: keys and values [B * S, Hkv, D].

        Raises: KernelError when the cache holds another number of sequences.
        """
        num_tokens = keys.shape[0] // batch
        _begin(self, keys, batch)
        room = self._shown.room_for(self, batch, num_tokens) if self._shown else None
        if room is None:
            length = self.get_seq_length()
            # Doubling keeps the copies of a long generation at one of each row.
            room = _moved(self, Room(batch, max(length + num_tokens + _SPARE_ROWS, 2 * length), keys))
            self._spare = None
        room.write(keys, values)
        self._show(room)
        return room.stores(0), room.stop

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let every sequence continue from the one that `beam_idx`, [B] int64, names."""
        room = self._shown.room_for(self, beam_idx.shape[0], 0) if self._shown else None
        if room is None:
            DynamicLayer.reorder_cache(self, beam_idx)  # type: ignore[arg-type]  # annotated as LongTensor, which torch returns nowhere
            return
        target = room.twin() if self._spare is None else self._spare
        target.take_reordered(room, beam_idx)
        self._spare = room
        self._show(target)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._shown = self._spare = None

    def _show(self, room: Room) -> None:
        self._shown = _Shown(room, 0)
        self.keys, self.values = self._shown.keys, self._shown.values


class WindowLayer(DynamicSlidingWindowLayer):
    """The same for a layer that keeps as many tokens as a sliding window needs.

    Tokens are added behind those that have left the window; only when the room is full are those within it moved.
    """

    def __init__(self, sliding_window: int) -> None:
        DynamicSlidingWindowLayer.__init__(self, sliding_window)
        self._shown: _Shown | None = None

    def append(self, keys: Tensor, values: Tensor, batch: int) -> Stored:
        """Add tokens; return the rows of keys and values that some of them may see, and how many each sequence has.

        Shapes: keys and values [B * S, Hkv, D].

        Raises: KernelError when the cache holds another number of sequences.
        """
        num_tokens = keys.shape[0] // batch
        _begin(self, keys, batch)
        held = 0 if self.keys is None or not self.keys.numel() else self.keys.shape[2]
        room = self._shown.room_for(self, batch, num_tokens) if self._shown else None
        if room is None:
            room = _moved(self, Room(batch, held + num_tokens + max(_SPARE_ROWS, self.sliding_window), keys))
        room.write(keys, values)
        self.cumulative_length += num_tokens
        self._shown = _Shown(room, room.stop - min(held + num_tokens, self.sliding_window - 1))
        self.keys, self.values = self._shown.keys, self._shown.values
        return room.stores(room.stop - held - num_tokens), held + num_tokens

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._shown = None


def row_layer(cache: Cache, index: int) -> RowLayer | WindowLayer | None:
    """Return the cache's layer as one that grows in place, or None for a cache of another kind (static, quantised...).

    What a layer of transformers' own holds is taken over.
    """
    if getattr(cache, "offloading", False):
        return None
    if cache.layer_class_to_replicate is DynamicLayer:
        while len(cache.layers) <= index:
            cache.layers.append(RowLayer())
    if index >= len(cache.layers):
        return None
    layer: Any = cache.layers[index]
    # One that keeps tokens to go back to them is left to transformers, and so is a window of one token.
    if getattr(layer, "record_past", False) or getattr(layer, "sliding_window", 2) < 2:
        return None
    if isinstance(layer, RowLayer | WindowLayer):
        return layer
    taken: RowLayer | WindowLayer
    if type(layer) is DynamicLayer:
        taken = RowLayer()
    elif type(layer) is DynamicSlidingWindowLayer:
        taken = WindowLayer(layer.sliding_window)
        taken.cumulative_length = layer.cumulative_length
    else:
        return None
    if layer.is_initialized:
        taken.lazy_initialization(layer.keys, layer.values)
        taken.keys, taken.values = layer.keys, layer.values
    cache.layers[index] = taken
    return taken


def _begin(layer: DynamicLayer, like: Tensor, batch: int) -> None:
    """Initialise the layer at its first tokens, and check the number of sequences at later ones."""
    if not layer.is_initialized:
        layer.lazy_initialization(like, like)
    if layer.keys is not None and layer.keys.numel() and layer.keys.shape[0] != batch:
        raise KernelError(
            f"cache: it holds {layer.keys.shape[0]} sequences, expected {batch} as in the inputs",
            hint="a cache belongs to the batch that it was filled with",
        )


def _moved(layer: DynamicLayer, room: Room) -> Room:
    """Return the new room with what the layer holds."""
    if layer.keys is not None and layer.values is not None and layer.keys.numel():
        room.take(layer.keys, layer.values)
    return room
