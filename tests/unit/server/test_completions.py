"""Bodies of POST /v1/completions: what is accepted, and what every refusal names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.engine.request import RequestOutput
from corebound.errors import RequestError
from corebound.server.completions import MAX_PROMPTS, Answer, parse_completion

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


def test_a_body_with_a_prompt_alone_takes_the_defaults_of_the_api():
    request = parse_completion({"prompt": "Hello"}, "demo")
    assert request.prompts == ("Hello",)
    assert (request.params.max_new_tokens, request.params.temperature, request.stream) == (16, 1.0, False)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_a_prompt_has_four_forms(prompt, expected):
    assert parse_completion({"prompt": prompt}, "demo").prompts == expected


def test_whole_numbers_are_taken_where_fractions_are_meant_and_null_is_the_default():
    params = parse_completion({"prompt": "a", "temperature": 0, "top_p": 1, "stop": None, "seed": None}, "demo").params
    assert params.is_greedy
    assert params.stop == ()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "body: expected a JSON object, found list"),
        ({"prompt": "a", "max_token": 3}, "max_tokens"),
        ({"prompt": "a", "n": 2}, "n: expected 1, the only value so far; found 2"),
        ({"prompt": "a", "logprobs": 3}, "logprobs"),
        ({"prompt": "a", "model": "gpt"}, "model: expected 'demo', which this server has; found 'gpt'"),
        ({"prompt": "a", "stream": "yes"}, "stream: expected true or false"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "temperature": True}, "temperature"),
        ({"prompt": "a", "temperature": 2.5}, "temperature: expected 0 to 2, found 2.5"),
        ({"prompt": "a", "top_k": 250880}, "top_k: expected 1 to 1024"),
        ({"prompt": "a", "repetition_penalty": 1e-46}, "repetition_penalty: expected 0.01 to 100"),
        ({"prompt": "a", "stop": ["a"] * 17}, "stop: expected at most 16 texts, found 17"),
        ({"prompt": "a", "stop": "a" * 257}, "stop: expected at most 256 characters"),
        ({"prompt": "a", "max_tokens": 0}, "max_new_tokens"),
        ({"prompt": "a", "stop": 3}, "stop: expected a text or a list of texts, found 3"),
        ({}, "prompt: expected a text"),
        ({"prompt": []}, "prompt: expected"),
        ({"prompt": [True]}, "prompt: expected"),
        ({"prompt": ["a", 1]}, "prompt: expected"),
        (
            {"prompt": ["a"] * (MAX_PROMPTS + 1)},
            f"at most {MAX_PROMPTS} of them, found",
        ),
    ],
)
def test_a_refusal_names_the_field(body, said):
    with pytest.raises(RequestError) as caught:
        parse_completion(body, "demo")
    assert said in caught.value.render()


@given(JSON | st.dictionaries(st.sampled_from(["prompt", "stop", "n", "top_k", "seed", "temperature"]), JSON))
def test_any_json_is_a_request_or_an_error_of_the_client(body):
    try:
        request = parse_completion(body, "demo")
    except RequestError:
        return
    assert request.prompts


def test_an_answer_counts_the_tokens_of_all_outputs():
    output = RequestOutput(prompt="a", text="bc", token_ids=(1, 2), num_prompt_tokens=1, finish_reason="length")
    whole = Answer("x", "demo").whole([output, output])
    assert [choice["text"] for choice in whole["choices"]] == ["bc", "bc"]
    assert whole["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
