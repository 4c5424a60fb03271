"""Names, shapes and types of a checkpoint against the family's table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from corebound.errors import ModelLoadError
from corebound.sharding import Geometry
from corebound.sharding.checkpoint import Checkpoint, TensorEntry
from corebound.sharding.match import match_parameters
from corebound.sharding.plan import model_parameters

BLOOM = Geometry(
    name="tiny",
    family="bloom",
    num_layers=2,
    hidden_size=48,
    num_heads=6,
    num_kv_heads=6,
    head_dim=8,
    intermediate_size=192,
    vocab_size=101,
)


def checkpoint(model: Geometry, prefix: str = "") -> Checkpoint:
    entries = {
        prefix + parameter.name: TensorEntry(prefix + parameter.name, Path("w"), "F32", parameter.shape, 0)
        for parameter in model_parameters(model)
    }
    return Checkpoint(entries, {})


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_bloom_is_known_with_and_without_the_prefix(prefix: str) -> None:
    entries = match_parameters(BLOOM, checkpoint(BLOOM, prefix))
    assert len(entries) == 5 + 2 * 12
    assert entries["h.1.mlp.dense_4h_to_h.weight"].name == f"{prefix}h.1.mlp.dense_4h_to_h.weight"


def with_changes(**changes: TensorEntry | None) -> Checkpoint:
    tensors: dict[str, TensorEntry | None] = {**checkpoint(BLOOM).tensors, **changes}
    return Checkpoint({name: entry for name, entry in tensors.items() if entry is not None}, {})


def test_unknown_and_missing_parameters_are_listed_with_the_nearest_name() -> None:
    stranger = TensorEntry("h.0.input_layernrom.weight", Path("w"), "F32", (48,), 0)
    changed = with_changes(**{stranger.name: stranger, "h.0.input_layernorm.weight": None})
    with pytest.raises(ModelLoadError) as caught:
        match_parameters(BLOOM, changed)
    assert "1 parameters that family 'bloom' does not know: h.0.input_layernrom.weight" in caught.value.message
    assert "1 parameters are missing: h.0.input_layernorm.weight" in caught.value.message
    assert "did you mean `h.0.input_layernorm.weight`?" in str(caught.value.hint)


def test_a_long_list_of_unknown_names_is_cut() -> None:
    strangers = {f"q.{n}": TensorEntry(f"q.{n}", Path("w"), "F32", (1,), 0) for n in range(20)}
    with pytest.raises(ModelLoadError, match=r"20 parameters .* and 12 more"):
        match_parameters(BLOOM, with_changes(**strangers))


def test_constants_that_old_versions_saved_are_ignored() -> None:
    mask = TensorEntry("h.0.self_attention.masked_bias", Path("w"), "F32", (), 0)
    head = TensorEntry("lm_head.weight", Path("w"), "F32", (101, 48), 0)
    entries = match_parameters(BLOOM, with_changes(**{mask.name: mask, head.name: head}))
    assert mask.name not in entries
    assert head.name not in entries


def test_biases_that_config_json_denies_are_not_dropped_silently() -> None:
    llama = dataclasses.replace(BLOOM, family="llama", features=frozenset({"attention_bias"}))
    without = dataclasses.replace(llama, features=frozenset())
    with pytest.raises(ModelLoadError, match=r"does not know: model\.layers\.0\.self_attn\.k_proj\.bias"):
        match_parameters(without, checkpoint(llama))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (TensorEntry("ln_f.weight", Path("f.safetensors"), "F32", (47,), 0), r"expected shape \[48\] \(hidden\)"),
        (
            TensorEntry("ln_f.weight", Path("f.safetensors"), "F8_E4M3", (48,), 0),
            "expected dtype F32, F16, BF16, found",
        ),
    ],
)
def test_a_wrong_shape_or_type_names_file_and_tensor(entry: TensorEntry, problem: str) -> None:
    with pytest.raises(ModelLoadError, match=f"f.safetensors: tensor 'ln_f.weight': {problem}"):
        match_parameters(BLOOM, with_changes(**{"ln_f.weight": entry}))
