"""The model that a benchmark measures: a directory, an id of the hub, or a random one of a given shape."""

from __future__ import annotations

from pathlib import Path

import click

from corebound.config.suggest import require_choice
from corebound.engine.bench.shapes import SHAPES, write_shape
from corebound.errors import ConfigError
from corebound.models import resolve_model


def benchmark_model_dir(model: str | None, shape: str | None, cache_dir: Path | None) -> Path:
    """Return the directory of the model that --model or --shape names; a shape is written once.

    Raises: ConfigError for both or neither, or a place that cannot be written.
    """
    if (model is None) == (shape is None):
        raise ConfigError("give either --model or --shape", hint="such as --shape llama-1.1b")
    if shape is None:
        return resolve_model(str(model))
    require_choice("shape", shape, SHAPES, where="--shape")
    target = cache_dir or Path.home() / ".cache" / "corebound" / "shapes"
    try:
        return write_shape(shape, target, lambda text: click.echo(text, err=True))
    except OSError as error:
        raise ConfigError(
            f"--cache-dir {target}: {error.strerror or error}", hint="name a directory with room for the model"
        ) from error
