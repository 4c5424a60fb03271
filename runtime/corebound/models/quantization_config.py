"""Reads quantization_config of a model's config.json: the packed formats of AWQ and GPTQ, and nothing near them."""

from __future__ import annotations

import json
from typing import Literal, cast

from corebound.errors import ModelLoadError
from corebound.models.config_reader import ConfigReader
from corebound.quantization.packed import PackedFormat
from corebound.quantization.scheme import GROUP_SIZES, Scheme

FIELD = "quantization_config"
_PER_CHANNEL = -1
_METHODS = ("awq", "gptq")
_GPTQ_FORMATS: dict[str, Literal[0, 1]] = {"gptq": 1, "gptq_v2": 0}

# What a field must be where it is present: another value changes what the tensors mean. Fields that say how the
# checkpoint was made (damp_percent, dataset, meta, ...) are not read.
_ONLY: dict[str, object] = {
    "dynamic": {},  # other bits for some matrices
    "is_marlin_format": False,
    "awq_gemm_checkpoint": False,
    "pack_dtype": "int32",
    "do_fuse": False,
}


def packed_format(config: ConfigReader) -> PackedFormat | None:
    """Return how the matrices of a checkpoint are packed, or None where they are plain.

    Raises: ModelLoadError naming the field that is missing, wrong, or asks for what is not read here.
    """
    section = config.section(FIELD)
    if section is None:
        return None
    method = section.values.get("quant_method")
    if method not in _METHODS:
        raise ModelLoadError(
            f"{section.path}: {FIELD}.quant_method: expected one of {', '.join(_METHODS)}, which this version reads, "
            f"found {json.dumps(method)}",
            hint="use the unquantised checkpoint of this model",
        )
    for field, only in _ONLY.items():
        value = section.values.get(field)
        if value is not None and value != only:
            expected = "nothing" if only == {} else json.dumps(only)
            raise section.wrong(field, f"{expected}, which this version reads", value)
    return _awq(section) if method == "awq" else _gptq(section)


def _awq(section: ConfigReader) -> PackedFormat:
    _lower_choice(section, ("version", "format"), ("gemm",), default="gemm")
    bits = section.integer("bits", "w_bit", default=4)
    if bits != 4:
        raise section.wrong("bits", "4, the only width of AWQ", bits)
    symmetric = not section.flag("zero_point", default=True)
    return PackedFormat(
        method="awq",
        scheme=Scheme(4, _group_size(section, "q_group_size"), symmetric),
        plain_modules=_plain_modules(section),
    )


def _gptq(section: ConfigReader) -> PackedFormat:
    stored = _lower_choice(section, ("checkpoint_format", "format"), tuple(_GPTQ_FORMATS), default="gptq")
    bits = section.integer("bits")
    if bits not in (4, 8):
        raise section.wrong("bits", "4 or 8", bits)
    return PackedFormat(
        method="gptq",
        scheme=Scheme(cast(Literal[4, 8], bits), _group_size(section), section.flag("sym", default=True)),
        zero_offset=_GPTQ_FORMATS[stored],
        activation_order=section.flag("desc_act", default=False),
        plain_modules=_plain_modules(section),
    )


def _group_size(section: ConfigReader, *aliases: str) -> int | None:
    size = section.integer("group_size", *aliases, minimum=_PER_CHANNEL)
    if size == _PER_CHANNEL:
        return None
    if size not in GROUP_SIZES:
        choices = ", ".join(str(choice) for choice in GROUP_SIZES)
        raise section.wrong("group_size", f"-1 (per channel), {choices}", size)
    return size


def _plain_modules(section: ConfigReader) -> tuple[str, ...]:
    field = "modules_to_not_convert"
    names = section.values.get(field)
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise section.wrong(field, "a list of names", names)
    return tuple(names)


def _lower_choice(section: ConfigReader, names: tuple[str, ...], valid: tuple[str, ...], *, default: str) -> str:
    """Return the word in the first field that is present; some tools write it in capitals."""
    for name in names:
        value = section.values.get(name)
        if isinstance(value, str):
            if value.lower() not in valid:
                raise section.wrong(name, f"one of {', '.join(valid)}, which this version reads", value)
            return value.lower()
    return section.choice(*names, valid=valid, default=default)
