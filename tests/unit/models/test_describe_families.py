"""What each family's config.json may ask for, and the error for what is not computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corebound.errors import ModelLoadError
from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.description import describe
from corebound.models.families import ARCHITECTURES, NOT_COMPUTED
from corebound.sharding.families import TABLES
from fixtures.decoder_families import CASES, FEW

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 256,
}
GPTJ: dict[str, Any] = {"vocab_size": 101, "n_embd": 48, "n_layer": 2, "n_head": 6, "rotary_dim": 4}
SLIDING = {"sliding_window": 9, "use_sliding_window": True}


def read(architecture: str, **fields: Any) -> Architecture:
    sizes = GPTJ if architecture == "GPTJForCausalLM" else SIZES
    config = {**sizes, "ffn_dim": 100, **fields}
    return ARCHITECTURES[architecture](ConfigReader(Path("config.json"), config), "tiny")


def test_every_family_has_a_table_and_a_tiny_model() -> None:
    families = {read(name).family for name in ARCHITECTURES if name != "BloomForCausalLM"}
    assert families | {"bloom"} == set(TABLES)
    assert families - {"llama"} == {name.split("-")[0] for name in CASES} == {name.split("-")[0] for name in FEW}


@pytest.mark.parametrize(
    ("architecture", "fields", "problem"),
    [
        ("Mistral", {"sliding_window": 0}, "sliding_window: expected a whole number of at least 1"),
        ("Mistral", {"sliding_window": 9, "layer_types": ["full_attention"] * 4}, "layer_types: expected sliding"),
        ("Mistral", {"hidden_act": "gelu"}, "hidden_act: expected one of silu"),
        ("Qwen2", {"layer_types": ["sliding_attention"] * 4}, "layer_types: expected 4 times full_attention,"),
        ("Qwen2", {"use_sliding_window": True, "layer_types": ["x"] * 4}, "layer_types: expected 4 times"),
        ("Qwen2", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling.type: expected one of"),
        ("Qwen2", {"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor: missing"),
        ("Qwen2", {"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 1}}, "rope_scaling.mscale: expected none"),
        (
            "Qwen2",
            {"rope_scaling": {"type": "yarn", "factor": 4, "truncate": False}},
            "rope_scaling.truncate: expected",
        ),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 2}},
            "rope_parameters.beta_fast: expected a number above beta_slow, 2, found 1",
        ),
        ("Qwen3", {"head_dim": 9}, "head_dim: expected an even number, for rotary positions, found 9"),
        (
            "Qwen3",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters: expected one set of values for all layers",
        ),
        (
            "Phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            'rope_scaling.type: expected one of default, which this version computes, found "longrope"',
        ),
        ("Phi3", {"attention_bias": True}, "attention_bias: expected false, found true"),
        ("Mistral", {"attention_bias": True}, "attention_bias: expected false, found true"),
        ("Qwen2", {"use_mrope": True}, "use_mrope: expected false, found true"),
        ("Starcoder2", {"norm_type": "rms"}, "norm_type: expected one of layer_norm"),
        ("Falcon", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm: exp"),
        ("Phi3", {"partial_rotary_factor": 0.4}, "partial_rotary_factor: expected a part of the 8 dimensions"),
        ("Llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0, found 0.5"),
        ("Granite", {"residual_multiplier": -1}, "residual_multiplier: expected a number above 0"),
        ("GPTNeoX", {"hidden_act": "tanh"}, "hidden_act: expected one of gelu, gelu_new"),
        ("GPTNeoX", {"num_key_value_heads": 2}, "num_key_value_heads: expected num_attention_heads, 6"),
        ("OPT", {"do_layer_norm_before": False}, "do_layer_norm_before: expected true, found false"),
        ("OPT", {"word_embed_proj_dim": 24}, "word_embed_proj_dim: expected hidden_size, 48, found 24"),
        ("OPT", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm: expected false, found true"),
        ("GPTJ", {"rotary_dim": 12}, "rotary_dim: expected an even number up to the size of a head, 8"),
        ("GPTJ", {"rotary_dim": None}, "rotary_dim: expected a whole number of at least 2, found null"),
        ("Falcon", {"alibi": True}, "alibi: expected false"),
        ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 4}, "num_kv_heads: expected a divisor"),
        ("Falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn: expected 1, found 2"),
        ("Gemma", {"hidden_activation": "relu"}, "hidden_activation: expected one of gelu_pytorch_tanh"),
        ("Gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected false"),
        ("StableLm", {"qk_layernorm": True}, "qk_layernorm: expected false"),
        ("Starcoder2", {"hidden_act": "silu"}, "hidden_act: expected one of gelu"),
        (
            "Mixtral",
            {"num_experts_per_tok": 9},
            "num_experts_per_tok: expected at most 8, the number of experts, found 9",
        ),
        ("Qwen2Moe", {"mlp_only_layers": [4]}, "mlp_only_layers: expected a list of layers from 0 to 3"),
        ("Qwen2Moe", {"use_sliding_window": True}, "layer_types: expected the kind of each layer"),
        ("Qwen3Moe", {"decoder_sparse_step": 0}, "decoder_sparse_step: expected a whole number of at least 1"),
    ],
)
def test_what_a_family_cannot_compute_names_the_field(architecture: str, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read(f"{architecture}ForCausalLM", **fields)
    assert caught.value.message.startswith(f"config.json: {problem}")


@pytest.mark.parametrize(
    ("architecture", "fields", "windows"),
    [
        ("Mistral", {}, ()),  # 4096 where nothing is said, which is beyond the context
        ("Mistral", {"max_position_embeddings": 8192}, (4096,) * 4),
        ("Mistral", {"max_position_embeddings": 8192, "sliding_window": None}, ()),
        ("Mistral", {"sliding_window": 256}, ()),
        ("Mistral", {"sliding_window": 255}, (255,) * 4),
        ("Qwen2", {"sliding_window": 9}, ()),
        ("Qwen2", {**SLIDING, "max_window_layers": 3}, (0, 0, 0, 9)),
        ("Qwen2", {**SLIDING, "sliding_window": None, "max_window_layers": 0}, ()),
        ("Qwen2", SLIDING, ()),
        ("Qwen3", {**SLIDING, "layer_types": ["sliding_attention", "full_attention"] * 2}, (9, 0, 9, 0)),
        ("Phi3", {"sliding_window": 100}, (100,) * 4),
    ],
)
def test_windows_are_those_that_a_context_can_leave(
    architecture: str, fields: dict[str, Any], windows: tuple[int, ...]
) -> None:
    assert read(f"{architecture}ForCausalLM", **fields).windows == windows


def test_yarn_stretches_the_context() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    model = read("Qwen2ForCausalLM", rope_scaling=scaling)
    assert model.rope is not None and model.max_positions == 512
    assert model.rope.magnitude == pytest.approx(1.1386294)


def test_fields_of_older_configs_are_read() -> None:
    old = read("GPTNeoXForCausalLM", rotary_pct=0.5, rotary_emb_base=500)
    assert old.rope is not None and (old.rope.dim, old.rope.theta) == (4, 500.0)
    assert read("GPTNeoXForCausalLM").rotary_dim == 2
    first = read("GemmaForCausalLM", hidden_act="gelu", hidden_activation=None)
    assert first.activation == "gelu_tanh_gated" and first.head_dim == 256
    config = ConfigReader(Path("config.json"), {"vocab_size": 101, "n_embed": 48, "n_head": 6, "n_layer": 2})
    assert ARCHITECTURES["FalconForCausalLM"](config, "tiny").num_kv_heads == 1


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt_neox", "layers.11.attention.masked_bias"),
        ("gpt_neox", "layers.0.attention.rotary_emb.inv_freq"),
        ("gptj", "h.27.attn.bias"),
        ("opt", "decoder.version"),
        ("falcon", "h.3.self_attention.rotary_emb.inv_freq"),
        ("stablelm", "model.layers.2.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_constants_that_old_checkpoints_carry_are_ignored(family: str, name: str) -> None:
    assert TABLES[family].is_ignored(name)
    assert not TABLES[family].is_ignored(f"{name}s")


def test_layers_without_experts_are_those_that_transformers_leaves_out() -> None:
    found = read("Qwen3MoeForCausalLM", decoder_sparse_step=2, mlp_only_layers=[1])
    assert found.dense_layers == {0, 1, 2} and found.has_experts(3) and not found.has_experts(1)


@pytest.mark.parametrize("name", NOT_COMPUTED)
def test_models_that_look_like_others_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], **SIZES}))
    with pytest.raises(ModelLoadError, match="not computed") as caught:
        describe(tmp_path)
    assert name in caught.value.message and "LlamaForCausalLM" in str(caught.value.hint)


def test_a_window_and_the_size_of_a_head_reach_the_description(tmp_path: Path) -> None:
    model = describe(CASES["mistral-window"](tmp_path / "m"), tokenizer=False)
    assert (model.windows, model.head_dim, model.family, model.tied_head) == ((7, 7), 16, "mistral", True)
    gemma = describe(CASES["gemma"](tmp_path / "g"), tokenizer=False)
    assert gemma.norm_offset == 1.0 and gemma.embedding_multiplier == pytest.approx(48**0.5)
