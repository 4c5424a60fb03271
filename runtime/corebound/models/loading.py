"""Loads a rank's part of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from corebound import kernels
from corebound.comm import Collectives
from corebound.kernels.panels import PanelMatrix
from corebound.logs import get_logger
from corebound.models.decoder import Decoder
from corebound.models.description import ModelDescription, describe
from corebound.models.native_decoder import NativeDecoder
from corebound.models.native_weights import arrange_native, matrix_schemes, panel_matrices
from corebound.models.quantizing import (
    CodeMeaningSink,
    CodePanelSink,
    MeaningSink,
    PanelSink,
    packed_panel_format,
    panel_format,
)
from corebound.models.stored import scheme_to_apply
from corebound.models.weights import arrange
from corebound.quantization.scheme import Scheme, is_scheme
from corebound.sharding import ShardPlan, shard_plan
from corebound.sharding.activation_order import check_activation_order
from corebound.sharding.arena import allocate
from corebound.sharding.packed_stream import PackedField, PackedReader
from corebound.sharding.reading import Meter, Progress
from corebound.sharding.stream import RowSink, load_shard, shard_bytes
from corebound.topology import read_topology

_log = get_logger(__name__)


def load_model(
    model_dir: Path | str, dtype: str, collectives: Collectives, progress: Progress | None = None
) -> Decoder | NativeDecoder:
    """Return this rank's decoder, reading only its part of the weights.

    `dtype` is float32, bfloat16, float16, or a quantization scheme such as `int8` or `int4:g64:sym`: then matrices are
    quantized while they are read, and everything else is bfloat16. The packed matrices of AWQ and GPTQ stay as they are
    with bfloat16, and are turned into floats with float32 and float16. Call it after the process has been bound: the
    thread that reads is the one that touches the memory first. `progress` is called with the bytes that were read and
    the bytes that will be.

    Raises: ModelLoadError for files that are missing, damaged or do not fit; ShardingError for a number of ranks that
    does not work; ConfigError for a scheme that is none.
    """
    description = describe(model_dir, tokenizer=False)
    plan = shard_plan(description, collectives.size)
    scheme = scheme_to_apply(description, dtype)
    torch_dtype = torch.bfloat16 if is_scheme(dtype) else getattr(torch, dtype)
    decoder: Decoder | NativeDecoder
    if torch_dtype == torch.bfloat16 and kernels.all_native():
        decoder = _load_native(description, plan, scheme, collectives, progress)
    else:
        decoder = _load_plain(description, plan, scheme, torch_dtype, collectives, progress)
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


def read_native(
    description: ModelDescription, plan: ShardPlan, rank: int, scheme: Scheme | None, progress: Progress | None = None
) -> tuple[dict[str, PanelMatrix], dict[str, Tensor]]:
    """Return a rank's matrices in panels and its other tensors in bfloat16, by field.

    With a `scheme` plain matrices are quantized while they are read; packed ones stay as they are.

    Raises: as load_model.
    """
    schemes = matrix_schemes(description, plan, rank, scheme)
    reader, packed = _packed(description, plan, rank)
    forms = {field: panel_format(how) for field, how in schemes.items()}
    for field, part in packed.items():
        assert description.packed is not None
        forms[field] = packed_panel_format(part, description.packed.scheme)
    matrices = panel_matrices(description, plan, rank, forms)
    sinks: dict[str, RowSink] = {}
    for field, how in schemes.items():
        if field not in packed:
            sinks[field] = matrices[field] if how is None else PanelSink(matrices[field], how)
    meter = _meter(description, plan, rank, reader, packed, progress)
    fields = load_shard(
        plan, rank, description.entries, dtype=torch.bfloat16, sinks=sinks, elsewhere=packed, meter=meter
    )
    for field, part in packed.items():
        assert reader is not None
        reader.load(part, CodePanelSink(matrices[field]), meter)
    return matrices, fields


def _load_native(
    description: ModelDescription,
    plan: ShardPlan,
    scheme: Scheme | None,
    collectives: Collectives,
    progress: Progress | None,
) -> NativeDecoder:
    matrices, fields = read_native(description, plan, collectives.rank, scheme, progress)
    weights = arrange_native(matrices, fields, description.num_layers)
    return NativeDecoder(description, plan, weights, collectives, team_cpus())


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
    reader, packed = _packed(description, plan, rank)
    quantized = {field: how for field, how in schemes.items() if how is not None}
    meanings = allocate({field: shapes[field] for field in (*quantized, *packed)}, dtype)
    sinks = {field: MeaningSink(meanings[field], how) for field, how in quantized.items()}
    if meanings:
        reason = "native kernels are off" if dtype == torch.bfloat16 else "as the dtype says"
        _log.warning("%s: quantized weights are computed with as %s: %s", description.name, dtype, reason)
    meter = _meter(description, plan, rank, reader, packed, progress)
    fields = load_shard(plan, rank, description.entries, dtype=dtype, sinks=sinks, elsewhere=packed, meter=meter)
    for field, part in packed.items():
        assert reader is not None
        reader.load(part, CodeMeaningSink(meanings[field]), meter)
    return Decoder(description, plan, arrange({**fields, **meanings}, description.num_layers), collectives)


def _packed(
    description: ModelDescription, plan: ShardPlan, rank: int
) -> tuple[PackedReader | None, dict[str, PackedField]]:
    """Return what reads the packed matrices of a checkpoint, and these by field; None and nothing for a plain one."""
    if description.packed is None:
        return None, {}
    check_activation_order(plan, description.packed, description.entries)
    reader = PackedReader(plan, rank, description.packed, description.entries)
    fields = reader.fields()
    apart = [field for field, part in fields.items() if not part.in_order]
    if apart:
        _log.warning(
            "%s: %d matrices with groups in the order of activations (desc_act) are kept as bfloat16, "
            "which takes %d times the memory",
            description.name,
            len(apart),
            16 // description.packed.scheme.bits,
        )
    return reader, fields


def _meter(
    description: ModelDescription,
    plan: ShardPlan,
    rank: int,
    reader: PackedReader | None,
    packed: Mapping[str, PackedField],
    progress: Progress | None,
) -> Meter:
    num_bytes = shard_bytes(plan, rank, description.entries, packed)
    if reader is not None:
        num_bytes += sum(reader.num_bytes(part) for part in packed.values())
    return Meter(num_bytes, progress)


def team_cpus() -> list[int]:
    """Return the CPUs of this process's team: one of each physical core, as many as torch has threads."""
    cpus = [core.cpus[0] for core in read_topology().physical_cores()]
    return cpus[: max(1, torch.get_num_threads())]
