"""The layer of a cache that grows in place against transformers' own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache

from corebound.errors import KernelError
from corebound.models.injection.cache import RowLayer, row_layer, rows_of
from fixtures.injectable import build


def states(num_tokens: int, *, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return keys and values [B, 2 heads, S, 4]."""
    generator = torch.Generator().manual_seed(seed + num_tokens)
    keys, values = torch.randn(2, batch, 2, num_tokens, 4, generator=generator)
    return keys, values


def assert_equal(ours: RowLayer, theirs: DynamicLayer) -> None:
    """Fail unless both hold the same."""
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)


CHANGES: dict[str, Callable[[DynamicLayer], object]] = {
    "nothing": lambda layer: None,
    "reordered": lambda layer: layer.reorder_cache(torch.tensor([2, 0, 0])),
    "reordered twice": lambda layer: [layer.reorder_cache(torch.tensor(to)) for to in ([2, 0, 0], [1, 1, 2])],
    "cropped": lambda layer: layer.crop(-3),
    "repeated": lambda layer: layer.batch_repeat_interleave(1),
    "selected": lambda layer: layer.batch_select_indices(torch.tensor([1, 1, 0])),
    "moved": lambda layer: (layer.offload(), layer.prefetch()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_does_what_transformers_own_does(change: str) -> None:
    ours, theirs = RowLayer(), DynamicLayer()
    for layer in (ours, theirs):
        layer.update(*states(5))
        CHANGES[change](layer)
        # More than the spare rows, so that the room is made anew with the change in it.
        for num_tokens in (1, 1, 90, 2):
            layer.update(*states(num_tokens))
        CHANGES[change](layer)
    assert_equal(ours, theirs)


def test_the_number_of_sequences_may_change_between_steps() -> None:
    ours, theirs = RowLayer(), DynamicLayer()
    for layer in (ours, theirs):
        layer.update(*states(5, batch=1))
        layer.batch_repeat_interleave(3)
        layer.update(*states(1))
    assert_equal(ours, theirs)


def test_growing_copies_each_row_a_bounded_number_of_times() -> None:
    """Symptom: the past is concatenated at every step, a copy of all keys and values per token (5.3)."""
    layer = RowLayer()
    layer.update(*states(8))
    places = set()
    for _ in range(1000):
        layer.update(*states(1))
        places.add(layer.keys.data_ptr())
    assert len(places) < 10


def test_reset_forgets_everything() -> None:
    layer = RowLayer()
    layer.update(*states(5))
    layer.reset()
    layer.update(*states(2, batch=1))
    assert torch.equal(layer.keys, states(2, batch=1)[0])


def test_another_number_of_sequences_is_an_error() -> None:
    layer = RowLayer()
    layer.update(*states(5))
    with pytest.raises(KernelError, match="holds 3 sequences, expected 2"):
        layer.update(*states(1, batch=2))


def test_layers_of_a_plain_cache_are_taken_over_and_others_left_alone() -> None:
    cache = DynamicCache()
    cache.update(*states(5), 0)
    taken = row_layer(cache, 0)
    assert taken is not None
    assert cache.layers[0] is taken
    assert torch.equal(taken.keys, states(5)[0])
    assert row_layer(cache, 2) is cache.layers[2]
    assert row_layer(StaticCache(config=build("llama").config, max_cache_len=8), 0) is None
    assert type(DynamicCache(config=build("llama").config).layers[0]) is DynamicLayer


def test_states_of_any_memory_layout_become_rows() -> None:
    keys, _ = states(5)
    for each in (keys, keys.transpose(1, 2).contiguous().transpose(1, 2)):
        store = rows_of(each)
        assert torch.equal(store.blocks.view(3, 5, 2, 4).transpose(1, 2), keys)
