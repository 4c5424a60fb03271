"""Mappings from outside into dataclasses: unknown keys and wrong types are errors that name the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from corebound.config.suggest import unknown_name
from corebound.errors import ConfigError

_Class = TypeVar("_Class")
_TEXTS = tuple[str, ...]
_NAMES = {str: "text", int: "a whole number", bool: "true or false", _TEXTS: "a list of texts"}


def from_mapping(cls: type[_Class], data: object, where: str) -> _Class:
    """Return a dataclass filled from a mapping.

    Raises: ConfigError for a key that is not a field (with the nearest), one that is missing, or a value of another
    type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected keys and values, found {data!r}")
    hints = get_type_hints(cls)
    for key in data:
        if key not in hints:
            raise unknown_name("key", str(key), hints, where=where)
    filled = {key: _value(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # every caller passes a dataclass
        has_default = not (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
        if field.name not in filled and not has_default:
            raise ConfigError(f"{where}: {field.name} is missing")
    return cls(**filled)


def _value(kind: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, where)  # type: ignore[arg-type]  # a dataclass, by the line above
    if kind == _TEXTS:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {_NAMES[kind]}, found {value!r}")
