"""Loads a rank's part of a model."""

from __future__ import annotations

from pathlib import Path

import torch

from corebound import kernels
from corebound.comm import Collectives
from corebound.kernels.panels import PanelFormat
from corebound.logs import get_logger
from corebound.models.decoder import Decoder
from corebound.models.description import ModelDescription, describe
from corebound.models.native_decoder import NativeDecoder
from corebound.models.native_weights import arrange_native, panel_matrices
from corebound.models.weights import arrange
from corebound.sharding import ShardPlan, shard_plan
from corebound.sharding.stream import Progress, load_shard
from corebound.topology import read_topology

_log = get_logger(__name__)


def load_model(
    model_dir: Path | str, dtype: torch.dtype, collectives: Collectives, progress: Progress | None = None
) -> Decoder | NativeDecoder:
    """Return this rank's decoder, reading only its part of the weights, in `dtype`.

    Call it after the process has been bound: the thread that reads is the one that touches the memory first.
    `progress` is called with the bytes that were read and the bytes that will be.

    Raises: ModelLoadError for files that are missing, damaged or do not fit; ShardingError for a number of ranks that
    does not work.
    """
    description = describe(model_dir, tokenizer=False)
    plan = shard_plan(description, collectives.size)
    decoder: Decoder | NativeDecoder
    if dtype == torch.bfloat16 and _all_native():
        decoder = _load_native(description, plan, PanelFormat(), collectives, progress)
    else:
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
        decoder.weight_bytes_per_token / 2**20,
    )
    return decoder


def _all_native() -> bool:
    return all(row["implementation"] == "native" for row in kernels.table())


def _load_native(
    description: ModelDescription,
    plan: ShardPlan,
    form: PanelFormat,
    collectives: Collectives,
    progress: Progress | None,
) -> NativeDecoder:
    matrices = panel_matrices(description, plan, collectives.rank, form)
    fields = load_shard(
        plan, collectives.rank, description.entries, dtype=torch.bfloat16, sinks=matrices, progress=progress
    )
    weights = arrange_native(matrices, fields, description.num_layers)
    return NativeDecoder(description, plan, weights, collectives, team_cpus())


def team_cpus() -> list[int]:
    """Return the CPUs of this process's team: one of each physical core, as many as torch has threads."""
    cores = read_topology().physical_cores()
    cpus = [core.cpus[0] for core in cores]
    return cpus[: max(1, torch.get_num_threads())]
