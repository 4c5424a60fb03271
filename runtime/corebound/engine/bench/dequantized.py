"""Writes a model whose matrices are what quantized ones stand for, so that any decoder shows what that costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from corebound.models.config_reader import CONFIG_FILE
from corebound.models.description import ModelDescription
from corebound.models.quantization_config import FIELD
from corebound.quantization.packed import rectangles
from corebound.quantization.reference import dequantize
from corebound.quantization.rtn import quantize
from corebound.quantization.scheme import Scheme
from corebound.quantization.unpack import unpack
from corebound.sharding.checkpoint import SINGLE_FILE
from corebound.sharding.expected import is_packable, packed_name
from corebound.sharding.plan import Parameter, model_parameters

_HEAD = "head_weight"
_EMBEDDING = "embedding_weight"


def write_dequantized(description: ModelDescription, target: Path, scheme: Scheme | None, *, head: bool = False) -> int:
    """Write the model into the directory `target` in float32, and return how many weights were quantized.

    With a `scheme` the matrices of the layers are quantized by rounding to nearest and turned back; with `head` also
    that of the head, which in a model with a tied head is the embedding. Packed matrices of a checkpoint are turned
    into what they stand for. The whole model is in memory once in float32.
    """
    quantized_fields = {_EMBEDDING if description.tied_head else _HEAD} if head else set()
    tensors: dict[str, torch.Tensor] = {}
    num_quantized = 0
    for parameter, weight in _weights(description):
        is_matrix = parameter.layer is not None and is_packable(parameter)
        if scheme is not None and (is_matrix or parameter.rule.field in quantized_fields):
            tensors[parameter.name] = dequantize(quantize(weight, scheme))
            num_quantized += weight.numel()
        else:
            tensors[parameter.name] = weight
    save_file(tensors, target / SINGLE_FILE)
    config: dict[str, Any] = json.loads((description.path / CONFIG_FILE).read_text(encoding="utf-8"))
    config.pop(FIELD, None)
    (target / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    return num_quantized


def _weights(description: ModelDescription) -> Iterator[tuple[Parameter, torch.Tensor]]:
    """Yield every parameter with its values in float32."""
    for parameter in model_parameters(description):
        entry = description.entries.get(parameter.name)
        if entry is None:
            yield parameter, _unpacked(description, parameter)
        else:
            yield parameter, _stored(description, parameter.name).float()


def _unpacked(description: ModelDescription, parameter: Parameter) -> torch.Tensor:
    assert description.packed is not None, parameter.name
    num_outputs, num_inputs = parameter.shape
    rows, columns = range(num_outputs), range(num_inputs)
    names = {
        suffix: packed_name(parameter, suffix) for suffix in rectangles(description.packed, num_inputs, rows, columns)
    }
    parts = {suffix: _stored(description, name) for suffix, name in names.items() if name in description.entries}
    where = f"{description.entries[names['qweight']].path}: {parameter.name}"
    return dequantize(unpack(description.packed, num_inputs, rows, columns, parts, where=where))


def _stored(description: ModelDescription, name: str) -> torch.Tensor:
    entry = description.entries[name]
    with safe_open(entry.path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(entry.name)
    return tensor
