"""Loads a rank's part of a model."""

from __future__ import annotations

from pathlib import Path

import torch

from corebound.comm import Collectives
from corebound.logs import get_logger
from corebound.models.decoder import Decoder
from corebound.models.description import describe
from corebound.models.weights import arrange
from corebound.sharding import shard_plan
from corebound.sharding.stream import Progress, load_shard

_log = get_logger(__name__)


def load_model(
    model_dir: Path | str, dtype: torch.dtype, collectives: Collectives, progress: Progress | None = None
) -> Decoder:
    """Return this rank's decoder, reading only its part of the weights, in `dtype`.

    Call it after the process has been bound: the thread that reads is the one that touches the memory first.
    `progress` is called with the bytes that were read and the bytes that will be.

    Raises: ModelLoadError for files that are missing, damaged or do not fit; ShardingError for a number of ranks that
    does not work.
    """
    description = describe(model_dir, tokenizer=False)
    plan = shard_plan(description, collectives.size)
    fields = load_shard(plan, collectives.rank, description.entries, dtype=dtype, progress=progress)
    decoder = Decoder(description, plan, arrange(fields, description.num_layers), collectives)
    _log.info(
        "%s: %d of %d heads, %d kv heads, vocabulary rows %d to %d, %.1f MiB of weights",
        description.name,
        decoder.num_heads,
        description.num_heads,
        decoder.num_kv_heads,
        decoder.vocab_start,
        decoder.vocab_stop,
        plan.num_elements(collectives.rank) * dtype.itemsize / 2**20,
    )
    return decoder
