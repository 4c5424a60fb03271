"""What a command sends its ranks: JSON on the standard input of rank 0, of which every such job has the model."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from corebound.config.env import rank_environment
from corebound.errors import ConfigError, ModelLoadError
from corebound.models import resolve_model, verify_manifest
from corebound.models.manifest import MAX_VERIFIED_BYTES

if TYPE_CHECKING:
    from corebound.comm import Collectives
    from corebound.engine.llm import LLM


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


@dataclass(frozen=True, kw_only=True)
class ModelJob:
    """The model that the ranks are to load, and how.

    It was verified on the host `verified_on`; `model_listing` has the digest and the size of each file there.
    """

    model: str
    model_listing: dict[str, list[Any]]
    verified_on: str
    dtype: str
    kv_cache_gib: float | None
    show_progress: bool
    allow_pickled_weights: bool = False

    def require_same_model(self) -> None:
        """Verify, on the first rank of each host but `verified_on`, that the model there is the launcher's.

        The rank that finds another one ends at once, which ends the launch: the others' loading is not waited for.

        Raises: ModelLoadError naming host, file, what was expected and what was found.
        """
        host, place = socket.gethostname(), rank_environment()
        if host == self.verified_on or place is None or place.local_rank != 0:
            return
        listing = {name: (str(digest), int(num_bytes)) for name, (digest, num_bytes) in self.model_listing.items()}
        try:
            verify_manifest(resolve_model(self.model), listing=listing, max_bytes=MAX_VERIFIED_BYTES)
        except ModelLoadError as error:
            hint = f"every host needs the model of {self.verified_on}, under the same path"
            raise ModelLoadError(f"{host}: {error.message}", hint=hint) from error

    def load(self, collectives: Collectives) -> LLM:
        """Return the model on the ranks of the group. All of them call it.

        Raises: as LLM.
        """
        # Here, because whoever only reads a job should not load the engine.
        from corebound.engine.llm import LLM

        return LLM(
            self.model,
            dtype=self.dtype,
            kv_cache_gib=self.kv_cache_gib,
            show_progress=self.show_progress,
            allow_pickled_weights=self.allow_pickled_weights,
            collectives=collectives,
        )
