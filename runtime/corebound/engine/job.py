"""What a command sends its ranks: JSON on the standard input of rank 0, and the check that all hosts have its model."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from typing import Any

from corebound.config.env import rank_environment
from corebound.errors import ConfigError, ModelLoadError
from corebound.models import resolve_model, verify_manifest
from corebound.models.manifest import MAX_VERIFIED_BYTES


def read_job() -> dict[str, Any]:
    """Return the job that came on standard input; rank 0 calls it.

    Raises: ConfigError.
    """
    text = sys.stdin.read()
    try:
        job = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"rank 0: standard input: expected a job as JSON: {error}") from error
    if not isinstance(job, dict):
        raise ConfigError("rank 0: standard input: expected a job as a JSON object")
    return job


def require_same_model(model: str, listing: Mapping[str, list[Any]], verified_on: str) -> None:
    """Verify, on the first rank of each host but `verified_on`, that the model there is the launcher's.

    `listing` has the digest and the size of each file. The rank that finds another model ends at once, which ends the
    launch: the others' loading is not waited for.

    Raises: ModelLoadError naming host, file, what was expected and what was found.
    """
    host, place = socket.gethostname(), rank_environment()
    if host == verified_on or place is None or place.local_rank != 0:
        return
    expected = {name: (str(digest), int(num_bytes)) for name, (digest, num_bytes) in listing.items()}
    try:
        verify_manifest(resolve_model(model), listing=expected, max_bytes=MAX_VERIFIED_BYTES)
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{host}: {error.message}", hint=f"every host needs the model of {verified_on}, under the same path"
        ) from error
