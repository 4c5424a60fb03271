"""The JSON files that benchmarks write and reports are made of."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from corebound.errors import ConfigError

SCHEMA = 1
TARGETS = "targets"


def read(path: Path) -> dict[str, Any]:
    """Return the results in a file. Raises: ConfigError for a file that is none, or of another schema."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        schema = found["schema"]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected results of `corebound bench peers` or `targets`: {error}") from error
    if schema != SCHEMA:
        raise ConfigError(f"{path}: expected results of schema {SCHEMA}, found {schema}")
    return dict(found)


def require_writable(path: Path) -> None:
    """Find out before anything is measured whether a file can be written, and leave it as it is.

    Raises: ConfigError naming the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists():
            with path.open("ab"):
                pass
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}", hint="name a file in a folder that you may write to"
        ) from error


def write(path: Path, found: dict[str, Any]) -> None:
    """Write results by one rename. Raises: ConfigError naming the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.new")
        unfinished.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
