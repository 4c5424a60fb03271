"""Reads values of a model's config.json; every mistake is an error that names file and field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from corebound.errors import ModelLoadError
from corebound.sharding.json_objects import RepeatedKeyError, without_repetition

CONFIG_FILE = "config.json"

_MISSING = object()
# What native code has for the smallest of its sizes, and more than any model needs.
_MAX_INTEGER = 2**31 - 1


class ConfigReader:
    """Typed access to one JSON object. Fields that older versions named differently are given as aliases."""

    def __init__(self, path: Path, values: dict[str, Any], *, where: str = "") -> None:
        self.path = path
        self.values = values
        self._where = where

    def integer(self, field: str, *aliases: str, default: int | None = None, minimum: int = 1) -> int:
        """Return a whole number of at least `minimum` and 31 bits; without a default the field must be there.

        Raises: ModelLoadError.
        """
        name, value = self._find(field, aliases, default)
        if type(value) is not int or value < minimum:
            raise self.wrong(name, f"a whole number of at least {minimum}", value)
        if value > _MAX_INTEGER:
            raise self.wrong(name, f"a whole number of at most {_MAX_INTEGER}", value)
        return value

    def number(self, field: str, *aliases: str, default: float | None = None) -> float:
        """Return a finite number above 0; without a default the field must be there.

        Raises: ModelLoadError.
        """
        name, value = self._find(field, aliases, default)
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:  # a whole number that no float is near
            number = math.inf
        if not 0 < number < math.inf:
            raise self.wrong(name, "a number above 0", value)
        return number

    def flag(self, field: str, *, default: bool) -> bool:
        """Return true or false.

        Raises: ModelLoadError.
        """
        name, value = self._find(field, (), default)
        if type(value) is not bool:
            raise self.wrong(name, "true or false", value)
        return value

    def choice(self, field: str, *aliases: str, valid: Iterable[str], default: str | None = None) -> str:
        """Return one of the `valid` words.

        Raises: ModelLoadError that lists them.
        """
        name, value = self._find(field, aliases, default)
        words = tuple(valid)
        if value not in words:
            raise self.wrong(name, f"one of {', '.join(words)}, which this version computes", value)
        return str(value)

    def section(self, field: str, *aliases: str) -> ConfigReader | None:
        """Return the object in a field, or None where it is missing or null.

        Raises: ModelLoadError when it is something else.
        """
        for name in (field, *aliases):
            value = self.values.get(name)
            if value is not None:
                if not isinstance(value, dict):
                    raise self.wrong(name, "an object", value)
                return ConfigReader(self.path, value, where=f"{self._where}{name}.")
        return None

    def wrong(self, field: str, expected: str, found: object) -> ModelLoadError:
        """Return the error for a field with a wrong value."""
        return ModelLoadError(f"{self.path}: {self._where}{field}: expected {expected}, found {json.dumps(found)}")

    def _find(self, field: str, aliases: tuple[str, ...], default: object) -> tuple[str, Any]:
        for name in (field, *aliases):
            value = self.values.get(name, _MISSING)
            # Transformers writes null for "take the default".
            if value is not _MISSING and not (value is None and default is not None):
                return name, value
        if default is None:
            names = " or ".join((field, *aliases))
            raise ModelLoadError(f"{self.path}: {self._where}{names}: missing")
        return field, default


def read_config(model_dir: Path) -> ConfigReader:
    """Return the reader of a model directory's config.json.

    Raises: ModelLoadError when the directory or file is missing or is not a JSON object.
    """
    path = model_dir / CONFIG_FILE
    values = read_json_object(path, hint=f"a model is a directory with {CONFIG_FILE}, safetensors and tokenizer.json")
    return ConfigReader(path, values)


def read_json_object(path: Path, *, hint: str | None = None) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises: ModelLoadError naming the file, and the line where it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_repetition)
    except RepeatedKeyError as error:
        raise ModelLoadError(f"{path}: {error}", hint="remove one of the two") from error
    except FileNotFoundError as error:
        raise ModelLoadError(f"{path}: missing", hint=hint) from error
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise ModelLoadError(
            f"{path}: not UTF-8 text: {error.reason} at byte {error.start}", hint="fetch the file again"
        ) from error
    except json.JSONDecodeError as error:
        raise ModelLoadError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of lists in lists
        raise ModelLoadError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
