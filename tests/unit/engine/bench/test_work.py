"""What a model reads and computes, counted from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from corebound.engine.bench import shapes
from corebound.engine.bench.work import work_of
from corebound.models import describe


def test_every_matrix_counts_but_the_embedding(tmp_path: Path) -> None:
    work = work_of(describe(shapes.write_shape("llama-tiny", tmp_path, lambda text: None), tokenizer=False))
    attention = 512 * 512 * 2 + 2 * 512 * 256
    assert work.layer_elements == 4 * (attention + 3 * 512 * 1408)
    assert work.head_elements == 4000 * 512
    assert work.weight_bytes(16) == 2 * (work.layer_elements + work.head_elements)
    assert work.cache_bytes(10, 3) == 2 * 4 * 4 * 64 * 2 * 10 * 3


def test_a_tied_head_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tied = shapes.SHAPES["llama-tiny"] | {"tie_word_embeddings": True}
    monkeypatch.setitem(shapes.SHAPES, "tied", tied)
    work = work_of(describe(shapes.write_shape("tied", tmp_path, lambda text: None), tokenizer=False))
    assert work.head_elements == 4000 * 512


def test_a_prefill_needs_two_operations_a_weight_and_token_and_causal_attention(tmp_path: Path) -> None:
    work = work_of(describe(shapes.write_shape("llama-tiny", tmp_path, lambda text: None), tokenizer=False))
    one = work.prefill_flop(1, 1)
    assert one == 2 * (work.layer_elements + work.head_elements) + 4 * 4 * 8 * 64
    assert work.prefill_flop(8, 3) == 3 * work.prefill_flop(8, 1)
    assert work.prefill_flop(8, 1) == 16 * work.layer_elements + 2 * work.head_elements + 4 * 4 * 8 * 64 * 36
