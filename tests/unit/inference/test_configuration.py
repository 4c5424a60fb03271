"""What init_inference was asked for: names, aliases, conflicts, values, and what has no effect."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from corebound.errors import ConfigError
from corebound.inference import configuration
from corebound.inference.configuration import InferenceConfig
from corebound.inference.keys import KEYS
from corebound.quantization.scheme import Scheme, parse_scheme


def read(config: Any = None, **keywords: Any) -> InferenceConfig:
    return InferenceConfig.read(config, keywords)


def test_the_call_of_the_blog_is_understood_word_for_word() -> None:
    config = read(mp_size=2, dtype=torch.bfloat16, replace_method="auto", replace_with_kernel_inject=False)
    assert (config.tp_size, config.dtype, config.replace_with_kernel_inject) == (2, torch.bfloat16, False)


@pytest.mark.parametrize(
    "given",
    [
        {"mp_size": 3},
        {"tp_size": 3},
        {"tensor_parallel": {"tp_size": 3}},
        {"tp": {"tp_size": 3, "enabled": True}},
        {"tp": {"tp_size": 3}, "mp_size": 3},
    ],
)
def test_the_number_of_ranks_has_several_names(given: dict[str, Any]) -> None:
    assert read(given).tp_size == read(**given).tp_size == 3


@pytest.mark.parametrize(
    ("config", "keywords", "named"),
    [
        (
            {"tensor_parallel": {"tp_size": 4}},
            {"mp_size": 2},
            ("tensor_parallel.tp_size=4 (config)", "mp_size=2 (keyword)"),
        ),
        ({"dtype": "fp16"}, {"dtype": torch.bfloat16}, ("dtype='fp16' (config)", "dtype=torch.bfloat16 (keyword)")),
        ({"max_tokens": 5, "max_out_tokens": 6}, {}, ("max_tokens=5 (config)", "max_out_tokens=6 (config)")),
        ({}, {"kernel_inject": True, "replace_with_kernel_inject": False}, ("kernel_inject=True", "inject=False")),
    ],
)
def test_two_values_of_one_key_are_an_error_that_lists_both(
    config: dict[str, Any], keywords: dict[str, Any], named: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="two values of") as caught:
        read(config, **keywords)
    assert all(text in caught.value.message for text in named)


def test_equal_values_in_two_places_are_no_conflict() -> None:
    assert read({"dtype": "bf16"}, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ({"kernel_injection": True}, "kernel_inject"),
        ({"mp_sise": 2}, "mp_size"),
        ({"tensor_parallel": {"tpsize": 2}}, "tp_size"),
        ({"quant": {"wieght": {}}}, "weight"),
        ({"quant": {"weight": {"numbits": 8}}}, "num_bits"),
    ],
)
def test_an_unknown_key_is_an_error_with_the_nearest_name(given: dict[str, Any], nearest: str) -> None:
    with pytest.raises(ConfigError, match="unknown key") as caught:
        read(given)
    assert f"`{nearest}`" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"tp": 2}, "tensor_parallel: expected an object"),
        ({"mp_size": "2"}, "mp_size: expected a whole number"),
        ({"mp_size": True}, "mp_size: expected a whole number"),
        ({"mp_size": -1}, "mp_size: expected a whole number"),
        ({"replace_with_kernel_inject": "yes"}, "expected true or false"),
        ({"dtype": "bfloat"}, "dtype: expected a type of floats"),
        ({"dtype": torch.int64}, "dtype: expected a type of floats"),
        ({"max_out_tokens": 0}, "max_out_tokens: expected a whole number of at least 1"),
        ({"injection_policy": {}}, "injection_policy: expected at least one class"),
        ({"injection_policy": {"BloomBlock": ()}}, r"injection_policy\[BloomBlock\]: expected names"),
        ({"injection_policy": {3: ("a",)}}, "expected classes of blocks"),
        ({"training_mp_size": 2}, "training_mp_size: expected 1"),
        ({"mpu": object()}, "get_model_parallel_group"),
        ({"checkpoint": 7}, "checkpoint: expected a path"),
        ({"quant": {"weight": {"num_bits": 3}}}, "num_bits: expected 4 or 8"),
    ],
)
def test_a_wrong_value_is_an_error_that_says_what_was_expected(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read(given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (
            {"injection_policy": {"A": ("a",)}, "kernel_inject": True},
            "injection_policy with replace_with_kernel_inject",
        ),
        ({"tp": {"enabled": False}, "mp_size": 2}, "tensor_parallel.enabled is false, but tp_size is 2"),
        ({"dtype": "int8", "quant": {"enabled": False}}, "quant says that weights are not quantized"),
        ({"dtype": "int8", "quant": {"weight": {"num_bits": 4}}}, "two ways to quantize"),
        ({"quant": {"weight": {"q_groups": 1, "group_size": 64}}}, "only one of them counts"),
    ],
)
def test_keys_that_exclude_each_other_are_an_error(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read(given)


def test_a_json_file_is_a_configuration_and_its_mistakes_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "inference.json"
    path.write_text(json.dumps({"dtype": "half", "tensor_parallel": {"tp_size": 2}}))
    config = read(path, max_out_tokens=9)
    assert (config.dtype, config.tp_size, config.max_out_tokens) == (torch.float16, 2, 9)
    path.write_text('{"dtype":\n half}')
    with pytest.raises(ConfigError, match=r"inference.json, line 2, column 2: not JSON"):
        read(str(path))
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="expected a JSON object, found list"):
        read(path)
    with pytest.raises(ConfigError, match=r"missing\.json: cannot be read"):
        read(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[(name, torch.float32) for name in ("fp32", "float32", "float", "torch.float32", torch.float32)],
        *[(name, torch.bfloat16) for name in ("bf16", "bfloat16", "torch.bfloat16", torch.bfloat16)],
        *[(name, torch.float16) for name in ("fp16", "half", "float16", torch.half)],
    ],
)
def test_types_are_named_as_deepspeed_names_them(text: Any, expected: torch.dtype) -> None:
    config = read(dtype=text)
    assert (config.dtype, config.scheme) == (expected, None)


@pytest.mark.parametrize(
    ("given", "dtype", "scheme"),
    [
        ({"dtype": torch.int8}, torch.bfloat16, parse_scheme("int8")),
        ({"dtype": "int8"}, torch.bfloat16, parse_scheme("int8")),
        ({"dtype": "int4:g64:sym"}, torch.bfloat16, Scheme(4, 64, True)),
        ({"dtype": "fp32", "quant": {"enabled": True}}, torch.float32, parse_scheme("int8")),
        ({"dtype": "fp32", "quant": {"weight": {"num_bits": 4}}}, torch.float32, parse_scheme("int4")),
        ({"dtype": "fp32", "quant": {"weight": {"q_type": "asymmetric"}}}, torch.float32, Scheme(8, None, False)),
        ({"dtype": "fp32", "quant": {"weight": {"group_size": 32}}}, torch.float32, Scheme(8, 32, True)),
        ({"dtype": "fp32", "quant": {"enabled": False, "weight": {"num_bits": 4}}}, torch.float32, None),
    ],
)
def test_int8_and_the_quant_block_mean_that_weights_are_quantized(
    given: dict[str, Any], dtype: torch.dtype, scheme: Scheme | None
) -> None:
    config = read(given)
    assert (config.dtype, config.scheme) == (dtype, scheme)


@pytest.mark.parametrize(
    ("isa", "expected"), [("amx", torch.bfloat16), ("avx512_bf16", torch.bfloat16), ("avx2", torch.float32)]
)
def test_the_type_that_nobody_asked_for_is_one_that_the_cpu_multiplies(
    isa: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed: "default: float16", which most CPUs cannot multiply."""

    monkeypatch.setattr(configuration, "read_topology", lambda: SimpleNamespace(isa=SimpleNamespace(best=isa)))
    assert read().dtype == expected


def test_keys_without_effect_warn_once_each_and_only_when_they_ask_for_something(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="corebound"):
        read({"enable_cuda_graph": True, "use_triton": False, "moe": {}}, replace_method="auto", zero={"stage": 3})
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    for name in ("enable_cuda_graph", "replace_method", "zero"):
        assert sum(f" {name} has no effect" in text for text in said) == 1


def test_none_means_not_given() -> None:
    assert read({"tp_size": None, "dtype": "fp32", "tensor_parallel": None}).tp_size is None


def test_every_key_is_documented_with_its_names_default_and_meaning() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "inference.md").read_text(encoding="utf-8")
    rows = {line for line in text.splitlines() if line.startswith("| `")}
    for key in KEYS:
        others = ", ".join(f"`{name}`" for name in key.others)
        meaning = f"no effect: {key.ignored}" if key.ignored else key.meaning
        assert f"| `{key.name}` | {others} | {'' if key.ignored else key.default} | {meaning} |" in rows, key.name
