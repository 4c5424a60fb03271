"""Loads a rank's part of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from corebound import kernels
from corebound.comm import Collectives
from corebound.config.env import rank_environment
from corebound.errors import KernelError
from corebound.kernels.panel_format import READINGS
from corebound.logs import get_logger
from corebound.models.decoder import Decoder
from corebound.models.description import ModelDescription, describe
from corebound.models.native_decoder import NativeDecoder
from corebound.models.native_source import NativeSource, meter_of, packed_source
from corebound.models.native_weights import NativeWeights, arrange_native
from corebound.models.quantizing import CodeMeaningSink, MeaningSink
from corebound.models.shard_reading import read_rank
from corebound.models.storage import matrix_schemes
from corebound.models.stored import scheme_to_apply
from corebound.models.weights import add_to_norms, arrange
from corebound.quantization.scheme import Scheme, is_scheme
from corebound.sharding import ShardPlan, shard_plan
from corebound.sharding.arena import allocate
from corebound.sharding.reading import Progress
from corebound.sharding.stream import load_shard
from corebound.topology import read_topology

_log = get_logger(__name__)


def load_model(
    model_dir: Path | str,
    dtype: str,
    collectives: Collectives,
    progress: Progress | None = None,
    *,
    allow_pickled_weights: bool = False,
) -> Decoder | NativeDecoder:
    """Return this rank's decoder, reading only its part of the weights.

    `dtype` is float32, bfloat16, float16, or a quantization scheme such as `int8` or `int4:g64:sym`: then matrices are
    quantized while they are read, and everything else is bfloat16. The packed matrices of AWQ and GPTQ stay as they are
    with bfloat16, and are turned into floats with float32 and float16. Call it after the process has been bound: the
    thread that reads is the one that touches the memory first. `progress` is called with the bytes that were read and
    the bytes that will be. `allow_pickled_weights`: as describe.

    Raises: ModelLoadError for files that are missing, damaged or do not fit; ShardingError for a number of ranks that
    does not work; ConfigError for a scheme that is none.
    """
    description = describe(model_dir, tokenizer=False, allow_pickled_weights=allow_pickled_weights)
    if description.shards is not None:
        description.shards.require_ranks(collectives.size)
    plan = shard_plan(description, collectives.size)
    scheme = scheme_to_apply(description, dtype)
    torch_dtype = torch.bfloat16 if is_scheme(dtype) else getattr(torch, dtype)
    decoder: Decoder | NativeDecoder
    if torch_dtype == torch.bfloat16 and kernels.all_native():
        decoder = _load_native(description, plan, scheme, collectives, progress)
    elif description.shards is not None:
        raise KernelError(
            f"{description.path}: weights in panels are computed with by native kernels only, and these are off",
            hint="`corebound doctor` says why; or use the checkpoint that it was made of",
        )
    else:
        decoder = _load_plain(description, plan, scheme, torch_dtype, collectives, progress)
    _choose_reading(decoder, collectives)
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


def _choose_reading(decoder: Decoder | NativeDecoder, collectives: Collectives) -> None:
    """Let all ranks read weights in one way; one without panels only meets the others."""
    if collectives.size == 1:
        if isinstance(decoder, NativeDecoder):
            decoder.tune()
        return
    # So that each is timed while the others read as well. The slowest disk decides how long they wait.
    collectives.barrier(math.inf)

    def sum_over_ranks(seconds: Sequence[float]) -> list[float]:
        sums: list[float] = collectives.all_gather(torch.tensor(seconds), math.inf).sum(0).tolist()
        return sums

    if isinstance(decoder, NativeDecoder):
        decoder.tune(sum_over_ranks)
    else:
        sum_over_ranks([0.0] * len(READINGS))


def _load_native(
    description: ModelDescription,
    plan: ShardPlan,
    scheme: Scheme | None,
    collectives: Collectives,
    progress: Progress | None,
) -> NativeDecoder:
    weights = load_native_weights(description, plan, collectives.rank, scheme, progress)
    return NativeDecoder(description, plan, weights, collectives, team_cpus())


def load_native_weights(
    description: ModelDescription,
    plan: ShardPlan,
    rank: int,
    scheme: Scheme | None = None,
    progress: Progress | None = None,
) -> NativeWeights:
    """Return a rank's weights for the native decoder, read by as many threads as torch has.

    Raises: ModelLoadError.
    """
    num_threads = max(1, torch.get_num_threads())
    if description.shards is not None:
        matrices, fields = read_rank(description, plan, rank, progress, num_threads=num_threads)
    else:
        source = NativeSource(description, plan, rank, scheme)
        matrices, fields = source.matrices, source.read(progress, num_threads)
    return arrange_native(matrices, fields, description.num_layers, description.num_experts)


def _load_plain(
    description: ModelDescription,
    plan: ShardPlan,
    scheme: Scheme | None,
    dtype: torch.dtype,
    collectives: Collectives,
    progress: Progress | None,
) -> Decoder:
    """Return the decoder of plain operators. Quantized matrices take as much memory there as their dtype does."""
    rank = collectives.rank
    schemes = matrix_schemes(description, plan, rank, scheme)
    shapes = plan.field_shapes(rank)
    reader, packed = packed_source(description, plan, rank)
    quantized = {field: how for field, how in schemes.items() if how is not None}
    meanings = allocate({field: shapes[field] for field in (*quantized, *packed)}, dtype)
    sinks = {field: MeaningSink(meanings[field], how) for field, how in quantized.items()}
    if meanings and rank == 0:
        reason = ", because native kernels are off" if dtype == torch.bfloat16 else ""
        name = str(dtype).removeprefix("torch.")
        _log.warning("%s: quantized weights are turned into %s%s", description.name, name, reason)
    meter = meter_of(description, plan, rank, reader, packed, progress)
    fields = load_shard(plan, rank, description.entries, dtype=dtype, sinks=sinks, elsewhere=packed, meter=meter)
    for field, part in packed.items():
        assert reader is not None
        reader.load(part, CodeMeaningSink(meanings[field]), meter)
    tensors = add_to_norms({**fields, **meanings}, description.norm_offset)
    weights = arrange(tensors, description.num_layers, description.num_experts)
    return Decoder(description, plan, weights, collectives)


def team_cpus() -> list[int]:
    """Return the CPUs of this process's team, as many as torch has threads; -1 for a thread that stays unpinned.

    A bound rank has just the cores that it uses. Where several ranks may use the same ones, each takes its own part.

    Raises: HostError as `read_topology`; ConfigError for an environment of a rank that is not whole.
    """
    topology, environment = read_topology(), rank_environment()
    cores = [core.cpus[0] for core in topology.physical_cores()]
    num_threads = max(1, torch.get_num_threads())
    if num_threads > len(cores):  # a list of CPUs that names both of a core
        return list(topology.allowed_cpus)[:num_threads]
    local_rank, local_size = (environment.local_rank, environment.local_size) if environment else (0, 1)
    if local_size == 1 or len(cores) == num_threads:
        return cores[:num_threads]
    if len(cores) < num_threads * local_size:
        return [-1] * num_threads
    return cores[local_rank * num_threads : (local_rank + 1) * num_threads]
