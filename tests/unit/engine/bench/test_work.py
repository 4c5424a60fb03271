"""What a model reads and computes, counted from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from corebound.engine.bench import shapes
from corebound.engine.bench.work import work_of
from corebound.models import describe
from corebound.models.config_reader import ConfigReader
from corebound.models.families import ARCHITECTURES


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


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe"])
def test_of_experts_those_count_that_a_token_goes_through(model_type: str) -> None:
    names = {"mixtral": "MixtralForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM"}
    config = shapes.SHAPES["llama-tiny"] | {
        "model_type": model_type,
        "architectures": [names[model_type]],
        "num_local_experts": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 704,
    }
    work = work_of(ARCHITECTURES[names[model_type]](ConfigReader(Path("x"), config), "x"))
    attention, router, expert = 512 * 512 * 2 + 2 * 512 * 256, 8 * 512, 3 * 512 * 1408
    shared = 3 * 512 * 704 + 512 if model_type == "qwen2_moe" else 0  # and the row that weighs it
    assert work.layer_elements == 4 * (attention + router + 2 * expert + shared)
    assert work.head_elements == 4000 * 512


def test_a_prefill_needs_two_operations_a_weight_and_token_and_causal_attention(tmp_path: Path) -> None:
    work = work_of(describe(shapes.write_shape("llama-tiny", tmp_path, lambda text: None), tokenizer=False))
    one = work.prefill_flop(1, 1)
    assert one == 2 * (work.layer_elements + work.head_elements) + 4 * 4 * 8 * 64
    assert work.prefill_flop(8, 3) == 3 * work.prefill_flop(8, 1)
    assert work.prefill_flop(8, 1) == 16 * work.layer_elements + 2 * work.head_elements + 4 * 4 * 8 * 64 * 36
