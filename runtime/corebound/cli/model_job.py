"""What `generate` and `serve` ask of a model before any rank starts, and the part of their jobs that names it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import click

from corebound.config import env
from corebound.engine.request import require_dtype
from corebound.errors import ConfigError
from corebound.launcher.hosts import topology_reader
from corebound.launcher.plan import plan
from corebound.launcher.spec import LaunchSpec
from corebound.models import ModelDescription, model_listing, verify_manifest
from corebound.models.manifest import MAX_VERIFIED_BYTES
from corebound.models.stored import scheme_to_apply
from corebound.sharding import shard_plan
from corebound.sharding.activation_order import check_activation_order

# Of every command that reads the weights of a --model.
allow_pickled_weights_option = click.option(
    "--allow-pickled-weights",
    is_flag=True,
    help="Without safetensors, read the tensors of pytorch_model*.bin; other objects in them are refused.",
)


def check_load(dtype: str, kv_cache_gib: float | None) -> None:
    """Raise RequestError or ConfigError for a dtype or a size of the cache that no model can be loaded with."""
    require_dtype(dtype)
    if kv_cache_gib is not None and not 0 < kv_cache_gib < float("inf"):
        raise ConfigError(f"--kv-cache-gib: expected a size above 0, found {kv_cache_gib}")


def model_job(
    model_dir: Path, dtype: str, kv_cache_gib: float | None, *, allow_pickled_weights: bool = False
) -> dict[str, Any]:
    """Return the fields of engine.job.ModelJob, after a look at the files of a small model.

    Raises: ModelLoadError for a file that is not the manifest's.
    """
    verify_manifest(model_dir, max_bytes=MAX_VERIFIED_BYTES)
    return {
        "model": str(model_dir),
        "model_listing": model_listing(model_dir),
        "verified_on": socket.gethostname(),
        "dtype": dtype,
        "kv_cache_gib": kv_cache_gib,
        "show_progress": sys.stderr.isatty(),
        "allow_pickled_weights": allow_pickled_weights,
    }


def check_ranks(description: ModelDescription, spec: LaunchSpec, dtype: str) -> None:
    """Check that the model can be loaded as `dtype` and split over the ranks of the launch, before any of them starts.

    Raises: ShardingError with the numbers of ranks that work; ConfigError for a launch that cannot be planned, or a
    dtype that weights cannot have which are packed.
    """
    scheme_to_apply(description, dtype)
    whole = plan(spec, topology_reader(), environ=env.snapshot())
    if description.shards is not None:
        description.shards.require_ranks(len(whole.ranks))
    split = shard_plan(description, len(whole.ranks))
    check_activation_order(split, description.packed, description.entries)
