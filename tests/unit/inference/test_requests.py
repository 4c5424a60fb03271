"""What transformers' `generate` would do with a call, and what the engine makes of it: the same number of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

import corebound
from corebound.inference import InferenceEngine
from corebound.inference.requests import Translation, translate
from fixtures.families import FAMILIES

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10]])
LONG = torch.arange(5, 60).view(1, -1)  # 55 of the 64 positions


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def plain() -> PreTrainedModel:
    return FAMILIES["llama"].build()


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    return corebound.init_inference(FAMILIES["llama"].build(), dtype="fp32")


def answer_of_own_decoder(engine: InferenceEngine, ids: torch.Tensor, **asked: Any) -> list[list[int]]:
    rest = {name: value for name, value in asked.items() if name != "attention_mask"}
    assert isinstance(translate(engine.module, ids, None, rest), Translation)
    tokens: torch.Tensor = engine.generate(input_ids=ids, **asked)
    return tokens.tolist()


@pytest.mark.parametrize(
    ("ids", "num_new"), [(PROMPT, 20), (torch.cat([PROMPT] * 5, 1), 20), (LONG, 9)], ids=["short", "longer", "at limit"]
)
def test_without_a_length_there_are_20_new_tokens_as_far_as_the_model_has_positions(
    ids: torch.Tensor, num_new: int, engine: InferenceEngine, plain: PreTrainedModel
) -> None:
    expected = plain.generate(input_ids=ids).tolist()
    assert len(expected[0]) == ids.shape[1] + num_new
    assert answer_of_own_decoder(engine, ids) == expected
    assert engine.module.generate(input_ids=ids).tolist() == expected


@pytest.mark.parametrize("where", ["keyword", "object", "model"])
def test_a_total_length_counts_the_prompt_wherever_it_is_given(where: str, plain: PreTrainedModel) -> None:
    asked: dict[str, Any] = {"max_length": 9} if where == "keyword" else {}
    if where == "object":
        asked = {"generation_config": GenerationConfig(max_length=9)}
    if where == "model":
        plain.generation_config.max_length = 9
    expected = plain.generate(input_ids=PROMPT, **asked).tolist()
    assert len(expected[0]) == 9
    engine = corebound.init_inference(plain, dtype="fp32")
    assert answer_of_own_decoder(engine, PROMPT, **asked) == expected


@pytest.mark.parametrize("asked", [{"max_length": 6}, {"max_length": 3}, {"max_new_tokens": 0}])
def test_a_length_that_leaves_nothing_to_generate_is_transformers_own_error(
    asked: dict[str, int], engine: InferenceEngine
) -> None:
    with pytest.raises(ValueError, match=r"Input length of input_ids is 6|`max_new_tokens` must be greater"):
        engine.generate(input_ids=PROMPT, **asked)


def test_what_a_given_configuration_leaves_open_is_the_models(plain: PreTrainedModel) -> None:
    first_new = plain.generate(input_ids=PROMPT, max_new_tokens=12)[0, 6:].tolist()
    plain.generation_config.eos_token_id = first_new[5]
    plain.generation_config.repetition_penalty = 1.3
    given = GenerationConfig(max_new_tokens=12)
    expected = plain.generate(input_ids=PROMPT, generation_config=given).tolist()
    engine = corebound.init_inference(plain, dtype="fp32")
    assert answer_of_own_decoder(engine, PROMPT, generation_config=given) == expected
    own = translate(plain, PROMPT, None, {"generation_config": given})
    assert isinstance(own, Translation)
    assert (own.params.stop_token_ids, own.params.repetition_penalty) == ((first_new[5],), 1.3)
    assert given.eos_token_id is None, "the caller's object must stay as it was"


def test_a_given_configuration_does_not_turn_off_the_models_sampling(plain: PreTrainedModel) -> None:
    plain.generation_config.update(do_sample=True, temperature=0.5, top_k=7)
    found = translate(plain, PROMPT, None, {"generation_config": GenerationConfig(max_new_tokens=4)})
    assert isinstance(found, Translation)
    assert (found.params.temperature, found.params.top_k) == (0.5, 7)


def test_a_call_that_the_module_answers_leaves_torchs_generator_to_it(
    engine: InferenceEngine, plain: PreTrainedModel
) -> None:
    asked: dict[str, Any] = {"do_sample": True, "top_k": 20, "max_new_tokens": 8, "pad_token_id": 0}
    # One position beyond those of the model, which only the module can do.
    for more in ({"no_repeat_ngram_size": 2}, {"max_new_tokens": 60}):
        torch.manual_seed(3)
        expected = plain.generate(input_ids=PROMPT, **asked | more)
        torch.manual_seed(3)
        assert torch.equal(engine.generate(input_ids=PROMPT, **asked | more), expected)
