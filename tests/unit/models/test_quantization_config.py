"""quantization_config of config.json: what AWQ and GPTQ tools write is read, anything else is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corebound.errors import ModelLoadError
from corebound.models.config_reader import ConfigReader
from corebound.models.quantization_config import packed_format
from corebound.quantization.packed import PackedFormat

AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def read(fields: Any) -> PackedFormat | None:
    return packed_format(ConfigReader(Path("m/config.json"), {"quantization_config": fields}))


def test_a_model_without_it_is_plain() -> None:
    assert packed_format(ConfigReader(Path("config.json"), {})) is None
    assert read(None) is None


@pytest.mark.parametrize(
    ("fields", "scheme", "offset"),
    [
        (AWQ, "int4:g128:asym", 0),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}, "int4:g64:asym", 0),
        (AWQ | {"zero_point": False, "group_size": -1}, "int4:channel:sym", 0),
        (AWQ | {"modules_to_not_convert": None, "backend": "autoawq"}, "int4:g128:asym", 0),
        (GPTQ, "int4:g128:sym", 1),
        (GPTQ | {"bits": 8, "group_size": -1, "sym": False}, "int8:channel:asym", 1),
        (GPTQ | {"checkpoint_format": "gptq"}, "int4:g128:sym", 1),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, "int4:g128:sym", 0),
        (GPTQ | {"format": "GPTQ_V2", "desc_act": None}, "int4:g128:sym", 0),
        (GPTQ | {"dynamic": None, "pack_dtype": "int32", "meta": {"quantizer": ["x:1"]}}, "int4:g128:sym", 1),
    ],
)
def test_what_the_tools_write_is_read(fields: dict[str, Any], scheme: str, offset: int) -> None:
    packed = read(fields)
    assert packed is not None
    assert (packed.method, packed.scheme.name, packed.zero_offset) == (fields["quant_method"], scheme, offset)
    assert not packed.activation_order


def test_activation_order_and_plain_modules_are_kept() -> None:
    packed = read(GPTQ | {"desc_act": True, "modules_to_not_convert": ["lm_head"]})
    assert packed is not None
    assert packed.activation_order
    assert packed.plain_modules == ("lm_head",)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (3, "expected an object, found 3"),
        ({}, "quant_method: expected one of awq, gptq, which this version reads, found null"),
        ({"quant_method": "bitsandbytes"}, 'quant_method: expected one of awq, gptq, .* found "bitsandbytes"'),
        ({"quant_method": "gptq", "bits": 4}, "group_size: missing"),
        ({"quant_method": "gptq", "group_size": 128}, "bits: missing"),
        (GPTQ | {"bits": 3}, "bits: expected 4 or 8, found 3"),
        (GPTQ | {"bits": "4"}, "bits: expected a whole number"),
        (GPTQ | {"group_size": 0}, r"group_size: expected -1 \(per channel\), 32, 64, 128, found 0"),
        (GPTQ | {"group_size": 1024}, r"group_size: expected -1 \(per channel\), 32, 64, 128, found 1024"),
        (GPTQ | {"desc_act": "yes"}, 'desc_act: expected true or false, found "yes"'),
        (GPTQ | {"sym": 1}, "sym: expected true or false, found 1"),
        (GPTQ | {"checkpoint_format": "marlin"}, 'checkpoint_format: expected one of gptq, gptq_v2, .* "marlin"'),
        (GPTQ | {"format": 2}, "format: expected one of gptq, gptq_v2, .* found 2"),
        (GPTQ | {"dynamic": {"-:lm_head": {}}}, "dynamic: expected nothing, which this version reads, found"),
        (GPTQ | {"pack_dtype": "int16"}, 'pack_dtype: expected "int32", which this version reads, found "int16"'),
        (GPTQ | {"is_marlin_format": True}, "is_marlin_format: expected false, which this version reads, found true"),
        (AWQ | {"bits": 8}, "bits: expected 4, the only width of AWQ, found 8"),
        (AWQ | {"version": "gemv"}, 'version: expected one of gemm, which this version reads, found "gemv"'),
        (AWQ | {"zero_point": 0}, "zero_point: expected true or false, found 0"),
        (AWQ | {"modules_to_not_convert": "lm_head"}, 'modules_to_not_convert: expected a list of names, found "lm_h'),
        (AWQ | {"modules_to_not_convert": [1]}, r"modules_to_not_convert: expected a list of names, found \[1\]"),
    ],
)
def test_what_is_not_read_is_named_with_file_and_field(fields: Any, problem: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"m/config\.json: quantization_config[:.] ?{problem}"):
        read(fields)
