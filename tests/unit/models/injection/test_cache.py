"""The layers of a cache that grow in place against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, StaticCache

from corebound.errors import KernelError
from corebound.models.injection.cache import RowLayer, WindowLayer, row_layer
from corebound.models.injection.rows import rows_of
from fixtures.injectable import build

WINDOW = 7


def states(num_tokens: int, *, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Return keys and values [B, 2 heads, S, 4]."""
    keys, values = torch.randn(2, batch, 2, num_tokens, 4, generator=torch.Generator().manual_seed(num_tokens))
    return keys, values


def add(layer: DynamicLayer, num_tokens: int, *, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Add tokens and return the keys and values that attention gets, by our way or that of transformers."""
    keys, values = states(num_tokens, batch=batch)
    if not isinstance(layer, RowLayer | WindowLayer):
        return layer.update(keys, values)
    stores, num_keys = layer.append(keys.transpose(1, 2).flatten(0, 1), values.transpose(1, 2).flatten(0, 1), batch)
    keys, values = (store.states(batch, num_keys) for store in stores)
    return keys, values


def pairs() -> list[tuple[DynamicLayer, DynamicLayer]]:
    """Return empty layers of both kinds, ours and transformers' own."""
    return [(RowLayer(), DynamicLayer()), (WindowLayer(WINDOW), DynamicSlidingWindowLayer(WINDOW))]


def assert_equal(ours: DynamicLayer, theirs: DynamicLayer) -> None:
    """Fail unless both hold the same and say so."""
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_mask_sizes(2) == theirs.get_mask_sizes(2)
    for name in ("keys", "values"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda layer: None,
    "reordered": lambda layer: layer.reorder_cache(torch.tensor([2, 0, 0])),
    "reordered twice": lambda layer: [layer.reorder_cache(torch.tensor(to)) for to in ([2, 0, 0], [1, 1, 2])],
    "repeated": lambda layer: layer.batch_repeat_interleave(1),
    "selected": lambda layer: layer.batch_select_indices(torch.tensor([1, 1, 0])),
    "moved": lambda layer: (layer.offload(), layer.prefetch()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_does_what_transformers_own_does(change: str) -> None:
    for ours, theirs in pairs():
        # 90 tokens are more than the spare rows, so that there is a new room with the changes in it.
        for num_tokens in (5, 1, 1, 90, 2, 1):
            for each, other in zip(add(ours, num_tokens), add(theirs, num_tokens), strict=True):
                assert torch.equal(each, other)
            for layer in (ours, theirs):
                CHANGES[change](layer)
            assert_equal(ours, theirs)


def test_tokens_can_be_taken_back() -> None:
    ours, theirs = RowLayer(), DynamicLayer()
    for layer in (ours, theirs):
        add(layer, 9)
        layer.crop(-3)
        add(layer, 2)
    assert_equal(ours, theirs)


def test_the_number_of_sequences_may_change_between_steps() -> None:
    for ours, theirs in pairs():
        for layer in (ours, theirs):
            add(layer, 5, batch=1)
            layer.batch_repeat_interleave(3)
            add(layer, 1)
        assert_equal(ours, theirs)


def test_a_long_generation_moves_its_cache_a_few_times_only() -> None:
    """Symptom: the past is concatenated at every step, a copy of all keys and values per token (5.3)."""
    for layer, most in ((RowLayer(), 6), (WindowLayer(200), 6)):
        add(layer, 8)
        rooms = {id(layer._shown.room): layer._shown.room} if layer._shown else {}
        for _ in range(1000):
            add(layer, 1)
            assert layer._shown is not None
            rooms[id(layer._shown.room)] = layer._shown.room
        assert len(rooms) <= most


def test_a_window_holds_a_bounded_number_of_rows() -> None:
    layer = WindowLayer(WINDOW)
    for _ in range(500):
        add(layer, 1)
    assert layer._shown is not None
    assert layer._shown.room.num_rows < 100


def test_reset_forgets_everything() -> None:
    for layer, _ in pairs():
        add(layer, 5)
        layer.reset()
        add(layer, 2, batch=1)
        assert layer.keys is not None
        assert torch.equal(layer.keys, states(2, batch=1)[0])


def test_another_number_of_sequences_is_an_error() -> None:
    for layer, _ in pairs():
        add(layer, 5)
        with pytest.raises(KernelError, match="holds 3 sequences, expected 2"):
            add(layer, 1, batch=2)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_layers_of_transformers_are_taken_over_with_what_they_hold(name: str) -> None:
    ours, theirs = (DynamicCache(config=build(name).config) for _ in range(2))
    for cache in (ours, theirs):
        cache.update(*states(9), 0)
    taken = row_layer(ours, 0)
    assert taken is not None
    assert ours.layers[0] is taken
    add(taken, 2)
    theirs.update(*states(2), 0)
    assert_equal(taken, theirs.layers[0])
    assert type(DynamicCache(config=build(name).config).layers[0]) is type(theirs.layers[0])


def test_layers_of_a_cache_without_configuration_are_made_as_they_come() -> None:
    cache = DynamicCache()
    assert row_layer(cache, 2) is cache.layers[2]
    assert all(isinstance(layer, RowLayer) for layer in cache.layers)


def test_caches_of_other_kinds_are_left_alone() -> None:
    assert row_layer(StaticCache(config=build("llama").config, max_cache_len=8), 0) is None
    recording = DynamicCache(config=build("mistral").config)
    recording.activate_past_recording()
    assert row_layer(recording, 0) is None


def test_states_of_any_memory_layout_become_rows() -> None:
    keys, _ = states(5)
    for each in (keys, keys.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(rows_of(each).states(3, 5), keys)
