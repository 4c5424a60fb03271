"""Readers of single values of the inference configuration: each returns the checked value or says what it expected.

Raises (every reader): ConfigError naming the key, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from corebound.config.suggest import nearest
from corebound.errors import ConfigError
from corebound.quantization.scheme import GROUP_SIZES, Scheme, is_scheme, parse_scheme

_FLOATS = {
    **dict.fromkeys(("fp32", "float32", "float"), torch.float32),
    **dict.fromkeys(("bf16", "bfloat16"), torch.bfloat16),
    **dict.fromkeys(("fp16", "float16", "half"), torch.float16),
}


def wrong(where: str, expected: str, found: object, *, hint: str | None = None) -> ConfigError:
    """Return the error for a key whose value is not what was expected."""
    return ConfigError(f"init_inference: {where}: expected {expected}, found {found!r:.120}", hint=hint)


def anything(where: str, value: Any) -> Any:
    """Return the value as it is."""
    return value


def flag(where: str, value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise wrong(where, "true or false", value)
    return value


def count_from(minimum: int) -> Callable[[str, Any], int]:
    """Return a reader of whole numbers of at least `minimum`."""

    def read(where: str, value: Any) -> int:
        if not _is_int(value) or value < minimum:
            raise wrong(where, f"a whole number of at least {minimum}", value)
        return int(value)

    return read


def only_one(where: str, value: Any) -> int:
    """Return 1, the only value that works here."""
    if not _is_int(value) or value != 1:
        raise wrong(where, "1", value)
    return 1


def bits(where: str, value: Any) -> int:
    """Return a width of quantized weights."""
    if value not in (4, 8) or not _is_int(value):
        raise wrong(where, "4 or 8", value)
    return int(value)


def group_size(where: str, value: Any) -> int:
    """Return how many inputs share a scale."""
    if not _is_int(value) or value not in GROUP_SIZES:
        raise wrong(where, f"one of {', '.join(map(str, GROUP_SIZES))}", value)
    return int(value)


def symmetry(where: str, value: Any) -> bool:
    """Return whether quantization is symmetric."""
    names = {"symmetric": True, "asymmetric": False}
    if value not in names:
        raise wrong(where, " or ".join(names), value)
    return names[value]


def path(where: str, value: Any) -> Path:
    """Return a path."""
    if not isinstance(value, str | Path) or not str(value):
        raise wrong(where, "a path", value)
    return Path(value)


def checkpoint(where: str, value: Any) -> str | Mapping[str, Any]:
    """Return where a checkpoint is, or the object that lists its files."""
    if isinstance(value, Mapping):
        return dict(value)
    return str(path(where, value))


def dtype(where: str, value: Any) -> torch.dtype | Scheme:
    """Return a type of floats, or how weights are quantized."""
    if isinstance(value, torch.dtype):
        if value in _FLOATS.values():
            return value
        if value == torch.int8:
            return parse_scheme("int8")
    if isinstance(value, str):
        name = value.removeprefix("torch.")
        if name in _FLOATS:
            return _FLOATS[name]
        if is_scheme(name):
            return parse_scheme(name)
    choices = [*_FLOATS, "int8", "int4"]
    close = nearest(str(value).removeprefix("torch."), choices)
    hint = (f"did you mean `{close}`? " if close else "") + f"valid: {', '.join(choices)}"
    raise wrong(where, "a type of floats, or int8 or int4 for the weights", value, hint=hint)


def names(where: str, value: Any) -> tuple[str, ...]:
    """Return names of layers; one alone may stand without a list."""
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not listed or not all(isinstance(name, str) and name for name in listed):
        raise wrong(where, "names of layers, such as ('self_attention.dense', 'mlp.dense_4h_to_h')", value)
    return tuple(listed)


def policy(where: str, value: Any) -> Any:
    """Return a policy: an object of its own, or names of layers for each class of blocks."""
    if not isinstance(value, Mapping):
        return value
    if not value:
        raise wrong(where, "at least one class of blocks with the names of its layers", value)
    found: dict[Any, tuple[str, ...]] = {}
    for block, listed in value.items():
        if not isinstance(block, type | str):
            raise wrong(where, "classes of blocks, or their names, as keys", block)
        found[block] = names(f"{where}[{block if isinstance(block, str) else block.__name__}]", listed)
    return found


def mpu(where: str, value: Any) -> Any:
    """Return an object that knows the group that shares the model."""
    if not callable(getattr(value, "get_model_parallel_group", None)):
        raise wrong(where, "an object with get_model_parallel_group()", value)
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
