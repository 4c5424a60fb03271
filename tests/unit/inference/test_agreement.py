"""Ranks that share a model and are asked for different things: an error on all of them, in whatever way they ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from corebound.errors import RequestError
from corebound.inference import InferenceEngine
from fixtures.engines import on_ranks

PROMPT = torch.tensor([[5, 6, 7, 8]])


def by_object(engine: InferenceEngine, rank: int) -> None:
    engine.generate(PROMPT, generation_config=GenerationConfig(max_new_tokens=2 + rank))


def by_object_of_the_module(engine: InferenceEngine, rank: int) -> None:
    engine.module.generate(PROMPT, GenerationConfig(max_new_tokens=2 + rank))


def by_the_models_settings(engine: InferenceEngine, rank: int) -> None:
    engine.module.generation_config.max_new_tokens = 2 + rank
    engine.generate(PROMPT)


def by_the_models_settings_in_the_module(engine: InferenceEngine, rank: int) -> None:
    engine.module.generation_config.max_new_tokens = 2 + rank
    engine.module.generate(PROMPT)


def by_inputs_of_forward(engine: InferenceEngine, rank: int) -> None:
    engine(PROMPT + rank)


@pytest.mark.parametrize(
    "ask",
    [
        by_object,
        by_object_of_the_module,
        by_the_models_settings,
        by_the_models_settings_in_the_module,
        by_inputs_of_forward,
    ],
)
def test_ranks_that_ask_for_different_things_are_all_told(ask: Callable[[InferenceEngine, int], None]) -> None:
    def use(engine: InferenceEngine) -> None:
        with pytest.raises(RequestError, match="those of rank 0 are not those of rank 1"):
            ask(engine, engine.collectives.rank)

    on_ranks(2, use)


def test_positional_and_named_arguments_that_are_equal_agree() -> None:
    def use(engine: InferenceEngine) -> Any:
        config = GenerationConfig(max_new_tokens=3)
        if engine.collectives.rank:
            return engine.module.generate(inputs=PROMPT, generation_config=config).tolist()
        return engine.module.generate(PROMPT, config).tolist()

    first, second = on_ranks(2, use)
    assert first == second and len(first[0]) == 7


@pytest.mark.parametrize("where", ["positional", "keyword", "model"])
def test_a_clock_is_refused_on_several_ranks_wherever_it_is_set(where: str) -> None:
    def use(engine: InferenceEngine) -> None:
        config = GenerationConfig(max_new_tokens=2, max_time=60.0 if where != "model" else None)
        if where == "model":
            engine.module.generation_config.max_time = 60.0
        with pytest.raises(RequestError, match="max_time on several ranks"):
            if where == "keyword":
                engine.module.generate(PROMPT, generation_config=config)
            else:
                engine.module.generate(PROMPT, config)

    on_ranks(2, use)


def test_each_rank_may_pass_its_own_cache_to_forward() -> None:
    def use(engine: InferenceEngine) -> Any:
        cache = DynamicCache(config=engine.module.config)
        first = engine(PROMPT, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
        return first.item(), engine(first, past_key_values=cache).logits.argmax().item()

    first, second = on_ranks(2, use)
    assert first == second
