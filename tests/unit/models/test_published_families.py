"""The sizes that published models have in config.json come to the number of weights that they are published with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from corebound.models.config_reader import ConfigReader
from corebound.models.families import ARCHITECTURES
from corebound.sharding import shard_plan
from corebound.sharding.plan import model_parameters


def sizes(hidden: int, inner: int, layers: int, heads: int, vocab: int, context: int, **rest: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        **rest,
    }


# What config.json of each says beside what is not read, and the number of its weights.
PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "Mistral 7B v0.1": (
        "Mistral",
        sizes(4096, 14336, 32, 32, 32000, 32768, num_key_value_heads=8, sliding_window=4096, rope_theta=10000.0),
        7_241_732_096,
    ),
    "Mixtral 8x7B v0.1": (
        "Mixtral",
        sizes(4096, 14336, 32, 32, 32000, 32768, num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2),
        46_702_792_704,
    ),
    "Qwen1.5-MoE A2.7B": (
        "Qwen2Moe",
        sizes(
            2048,
            5632,
            24,
            16,
            151936,
            8192,
            num_experts=60,
            num_experts_per_tok=4,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
            use_sliding_window=False,
        ),
        14_315_784_192,
    ),
    "Qwen3 30B A3B": (
        "Qwen3Moe",
        sizes(
            2048,
            6144,
            48,
            32,
            151936,
            40960,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
            norm_topk_prob=True,
        ),
        30_532_122_624,
    ),
    "Qwen2.5 0.5B": (
        "Qwen2",
        sizes(
            896,
            4864,
            24,
            14,
            151936,
            32768,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_theta=1000000.0,
            use_sliding_window=False,
            sliding_window=32768,
            max_window_layers=24,
            use_mrope=False,
        ),
        494_032_768,
    ),
    "Qwen3 0.6B": (
        "Qwen3",
        sizes(
            1024,
            3072,
            28,
            16,
            151936,
            40960,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
            attention_bias=False,
            rope_scaling=None,
            sliding_window=None,
        ),
        596_049_920,
    ),
    "Phi-3 mini 4k": (
        "Phi3",
        sizes(3072, 8192, 32, 32, 32064, 4096, num_key_value_heads=32, rope_scaling=None, sliding_window=2047),
        3_821_079_552,
    ),
    "Granite 3.1 2B": (
        "Granite",
        sizes(
            2048,
            8192,
            40,
            32,
            49155,
            131072,
            num_key_value_heads=8,
            tie_word_embeddings=True,
            attention_multiplier=0.015625,
            embedding_multiplier=12.0,
            logits_scaling=8.0,
            residual_multiplier=0.22,
            rope_scaling=None,
            rope_theta=5000000.0,
        ),
        2_533_531_648,
    ),
    "Gemma 2B": (
        "Gemma",
        sizes(2048, 16384, 18, 8, 256000, 8192, num_key_value_heads=1, head_dim=256, hidden_act="gelu"),
        2_506_172_416,
    ),
    "Stable LM 2 1.6B": (
        "StableLm",
        sizes(2048, 5632, 24, 32, 100352, 4096, num_key_value_heads=32, use_qkv_bias=True, partial_rotary_factor=0.25),
        1_644_515_328,
    ),
    "StarCoder2 3B": (
        "Starcoder2",
        sizes(3072, 12288, 30, 24, 49152, 16384, num_key_value_heads=2, sliding_window=4096, mlp_type="default"),
        3_030_371_328,
    ),
    "Pythia 70M": ("GPTNeoX", sizes(512, 2048, 6, 8, 50304, 2048, rotary_pct=0.25, rotary_emb_base=10000), 70_426_624),
    "GPT-J 6B": (
        "GPTJ",
        {"n_embd": 4096, "n_layer": 28, "n_head": 16, "n_inner": None, "rotary_dim": 64, "vocab_size": 50400},
        6_050_882_784,
    ),
    "OPT 125M": ("OPT", sizes(768, 0, 12, 12, 50272, 2048, ffn_dim=3072, word_embed_proj_dim=768), 125_239_296),
    "Falcon 7B": (
        "Falcon",
        {
            "hidden_size": 4544,
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "vocab_size": 65024,
            "alibi": False,
            "multi_query": True,
            "parallel_attn": True,
            "apply_residual_connection_post_layernorm": False,
        },
        6_921_720_704,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_weights_that_they_are_published_with(name: str) -> None:
    architecture, config, num_weights = PUBLISHED[name]
    model = ARCHITECTURES[f"{architecture}ForCausalLM"](ConfigReader(Path(name), config), name)
    assert sum(math.prod(parameter.shape) for parameter in model_parameters(model)) == num_weights
    for num_ranks in (2, 4, 7):
        plan = shard_plan(model, num_ranks)
        held = sum(plan.num_elements(rank) for rank in range(num_ranks))
        assert num_weights <= held < 1.6 * num_weights  # norms, positions and kv heads may be held several times


def test_windows_of_published_models_are_read() -> None:
    found = {}
    for name in ("Mistral 7B v0.1", "Phi-3 mini 4k", "StarCoder2 3B", "Qwen2.5 0.5B"):
        architecture, config, _ = PUBLISHED[name]
        model = ARCHITECTURES[f"{architecture}ForCausalLM"](ConfigReader(Path(name), config), name)
        found[name] = set(model.windows)
    assert found == {
        "Mistral 7B v0.1": {4096},
        "Phi-3 mini 4k": {2047},
        "StarCoder2 3B": {4096},
        "Qwen2.5 0.5B": set(),
    }
