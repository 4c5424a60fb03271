"""Requests: what is accepted, and how a wrong value is reported."""

import json

import pytest

from corebound.engine.request import RequestOutput, SamplingParams, require_dtype
from corebound.errors import ConfigError, RequestError


def test_greedy_is_the_default():
    assert SamplingParams().is_greedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", ("",)),
        ("stop_token_ids", (-1,)),
        ("num_beams", 0),
    ],
)
def test_a_value_out_of_range_names_the_field(field, value):
    with pytest.raises(RequestError, match=f"^{field}: expected .* found"):
        SamplingParams(**{field: value})


def test_beams_do_not_mix_with_sampling():
    with pytest.raises(RequestError, match="beam search does not sample"):
        SamplingParams(num_beams=4, temperature=0.7)


@pytest.mark.parametrize("other", [{"stop": ("a",)}, {"repetition_penalty": 1.2}])
def test_beams_refuse_what_they_would_ignore(other):
    with pytest.raises(RequestError, match="beam search has neither yet"):
        SamplingParams(num_beams=4, **other)


def test_one_stop_string_need_not_be_a_list():
    assert SamplingParams(stop="\n").stop == ("\n",)


def test_settings_that_only_sampling_reads_have_no_effect_on_greedy():
    assert SamplingParams(top_k=5, seed=1).without_effect() == ("top_k", "seed")
    assert SamplingParams(top_k=5, seed=1, temperature=1.0).without_effect() == ()


def test_parameters_survive_json():
    params = SamplingParams(max_new_tokens=3, temperature=0.5, stop=("a", "b"), stop_token_ids=(7,), seed=2**64 - 1)
    assert SamplingParams.from_json(json.loads(json.dumps(params.to_json()))) == params


def test_a_mistyped_parameter_names_the_nearest_one():
    with pytest.raises(ConfigError) as caught:
        SamplingParams.from_json({"temprature": 1.0})
    assert "`temperature`" in str(caught.value.hint)


def test_outputs_survive_json_with_their_times():
    output = RequestOutput(
        prompt="a",
        text=" b",
        token_ids=(1, 2),
        num_prompt_tokens=1,
        finish_reason="stop",
        first_token_s=0.5,
        token_gaps_s=(0.1,),
    )
    back = RequestOutput.from_message(json.loads(json.dumps(output.to_message())))
    assert back == output
    assert (back.first_token_s, back.token_gaps_s) == (0.5, (0.1,))


def test_quantization_schemes_are_dtypes():
    assert require_dtype("int8") == "int8"
    assert require_dtype("int4:g64:sym") == "int4:g64:sym"
    with pytest.raises(ConfigError, match="unknown part 'g48'"):
        require_dtype("int4:g48")


def test_a_mistyped_dtype_names_the_nearest_one():
    with pytest.raises(ConfigError) as caught:
        require_dtype("bfloat")
    assert "`bfloat16`" in str(caught.value.hint)
