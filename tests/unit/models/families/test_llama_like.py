"""Families that LLaMA is the pattern of read the fields they share in one way, and only their own beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from corebound.errors import ModelLoadError
from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families import ARCHITECTURES
from corebound.models.families.llama_like import llama_like

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
YARN = {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 64}


def read(family: str, **fields: Any) -> Architecture:
    return ARCHITECTURES[f"{family}ForCausalLM"](ConfigReader(Path("config.json"), SIZES | fields), "tiny")


def shared(**fields: Any) -> Architecture:
    config = ConfigReader(Path("config.json"), SIZES | fields)
    return llama_like(config, "tiny", family="any", default_positions=128, biases={"mlp_bias": False})


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "Granite"])
def test_a_config_that_says_everything_reads_alike_in_each_family(family: str) -> None:
    said = {"max_position_embeddings": 512, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 500.0}
    found = read(family, **said)
    scale = 1.0 if family == "Granite" else None
    assert found == dataclasses.replace(shared(**said), family=family.lower(), attention_scale=scale)


@pytest.mark.parametrize(
    ("family", "positions", "head_dim"),
    [("Llama", 2048, 8), ("Mistral", 131072, 8), ("Qwen2", 32768, 8), ("Qwen3", 32768, 128), ("Granite", 2048, 8)],
)
def test_where_config_says_nothing_each_family_has_its_own_default(family: str, positions: int, head_dim: int) -> None:
    found = read(family)
    assert (found.max_positions, found.head_dim, found.norm_eps) == (positions, head_dim, 1e-6)


@pytest.mark.parametrize(
    ("family", "present"),
    [
        ("Llama", {"attention_bias", "mlp_bias"}),
        ("Qwen2", set()),  # of q, k and v always, which its table of parameters says
        ("Qwen3", {"attention_bias"}),
        ("Granite", {"attention_bias", "mlp_bias"}),
    ],
)
def test_only_biases_that_a_family_has_become_features(family: str, present: set[str]) -> None:
    assert read(family, attention_bias=True, mlp_bias=True).features == present | {"untied_head"}
    assert read(family, tie_word_embeddings=True).features == frozenset()


def test_yarn_stretches_all_but_granite() -> None:
    assert {family: read(family, **YARN).max_positions for family in ("Llama", "Mistral", "Qwen2", "Granite")} == {
        "Llama": 256,
        "Mistral": 256,
        "Qwen2": 256,
        "Granite": 64,
    }


def test_windows_are_asked_for_the_layers_and_the_stretched_context() -> None:
    asked: list[tuple[int, int]] = []

    def windows(_: ConfigReader, num_layers: int, max_positions: int) -> tuple[int, ...]:
        asked.append((num_layers, max_positions))
        return (5,) * num_layers

    config = ConfigReader(Path("config.json"), SIZES | YARN)
    assert llama_like(config, "tiny", family="any", default_positions=128, windows=windows).windows == (5,) * 4
    assert asked == [(4, 256)]


def test_another_activation_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="hidden_act: expected one of silu"):
        shared(hidden_act="relu")
