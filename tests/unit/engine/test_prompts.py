"""What callers pass as prompts: every form that is meant, and an error of ours for the others."""

import numpy as np
import pytest
import torch

from corebound.engine import SamplingParams
from corebound.engine.prompts import prompt_list, require_near, require_params, require_text, token_tuple
from corebound.errors import RequestError


def test_one_text_is_one_prompt():
    assert prompt_list("abc") == ["abc"]
    assert prompt_list(("a", "b")) == ["a", "b"]
    assert prompt_list(iter([[1], [2]])) == [[1], [2]]


@pytest.mark.parametrize("prompts", [None, 5, 1.5, b"abc", {"a": 1}])
def test_what_is_no_list_of_prompts_is_an_error_of_ours(prompts):
    with pytest.raises(RequestError, match="prompts: expected a text, a list of texts"):
        prompt_list(prompts)


@pytest.mark.parametrize("prompt", [[1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]), range(1, 3)])
def test_token_ids_may_be_of_any_integer_type(prompt):
    found = token_tuple("prompt 0", prompt)
    assert found == (1, 2)
    assert {type(token) for token in found} == {int}


@pytest.mark.parametrize("prompt", [[1, "2"], [1.0], [True], [None], [[1]], torch.tensor([1.5])])
def test_token_ids_that_are_no_whole_numbers_are_an_error_of_ours(prompt):
    with pytest.raises(RequestError, match="prompt 3: token ids are whole numbers, found"):
        token_tuple("prompt 3", prompt)


@pytest.mark.parametrize("prompt", [None, 2.5, b"ab", {1: 2}, object()])
def test_a_prompt_of_another_type_is_an_error_of_ours(prompt):
    with pytest.raises(RequestError, match="prompt 1: expected a text or a list of token ids"):
        token_tuple("prompt 1", prompt)


def test_a_flat_list_of_token_ids_gets_a_hint():
    with pytest.raises(RequestError, match="found the number 7 as prompt 0") as caught:
        token_tuple("prompt 0", 7)
    assert "[[1, 2, 3]]" in caught.value.hint


def test_text_that_no_tokenizer_can_read_is_an_error_of_ours():
    assert require_text("prompt 0", "Grüße") == "Grüße"
    with pytest.raises(RequestError, match="prompt 0: not valid text: surrogates not allowed at character 1"):
        require_text("prompt 0", "a\ud800")


def test_parameters_are_sampling_params_or_nothing():
    assert require_params(None) == SamplingParams()
    with pytest.raises(RequestError, match="params: expected SamplingParams, found dict"):
        require_params({"max_new_tokens": 3})


def test_a_prompt_far_beyond_the_context_is_refused_by_its_length_alone():
    for prompt in ("a" * 640, [1] * 10):
        require_near(prompt, 10)
    with pytest.raises(RequestError, match="prompt has 641 characters: the model's context is 10 tokens"):
        require_near("a" * 641, 10)
    with pytest.raises(RequestError, match="prompt has 11 tokens"):
        require_near([1] * 11, 10)
