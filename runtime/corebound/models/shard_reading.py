"""Reads what `corebound shard` wrote for a rank, straight into the memory from which it is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from corebound.errors import ModelLoadError
from corebound.kernels.panel_format import Kind, PanelFormat, ScaleKind
from corebound.kernels.panels import PanelMatrix
from corebound.models.description import ModelDescription
from corebound.models.native_weights import place_matrices
from corebound.models.shards import StoredMatrix
from corebound.models.storage import matrix_schemes
from corebound.sharding import ShardPlan
from corebound.sharding.arena import allocate
from corebound.sharding.checkpoint import TensorEntry, read_header
from corebound.sharding.reading import Meter, Progress, opened, read_span

_CHUNK_BYTES = 16 << 20  # after which progress is told


def read_rank(
    description: ModelDescription, plan: ShardPlan, rank: int, progress: Progress | None = None
) -> tuple[dict[str, PanelMatrix], dict[str, Tensor]]:
    """Return a rank's matrices in panels and its other tensors in bfloat16, by field.

    Raises: ModelLoadError for a file that is damaged or does not fit config.json.
    """
    shards = description.shards
    assert shards is not None and shards.num_ranks == plan.num_ranks
    file = shards.ranks[rank]
    path = shards.path / file.name
    entries, _ = read_header(path)
    shapes = plan.field_shapes(rank)
    if set(file.matrices) != set(matrix_schemes(description, plan, rank, None)) or set(entries) != set(shapes):
        raise ModelLoadError(f"{path}: expected the tensors that config.json says, found others", hint=_ANEW)
    matrices = {field: _matrix(stored) for field, stored in file.matrices.items()}
    for field, entry in entries.items():
        _check(entry, shapes[field], matrices.get(field))
    tensors = place_matrices(matrices)
    fields = allocate({field: shape for field, shape in shapes.items() if field not in matrices}, torch.bfloat16)
    _fill(entries, {**tensors, **fields}, progress)
    return matrices, fields


_ANEW = "write it anew with `corebound shard --force`"


def _matrix(stored: StoredMatrix) -> PanelMatrix:
    form = PanelFormat(
        kind=cast(Kind, stored.kind),
        group_size=stored.group_size,
        asymmetric=stored.asymmetric,
        scale_kind=cast(ScaleKind, stored.scale_kind),
    )
    return PanelMatrix(stored.outputs, stored.inputs, form, gated=stored.gated)


def _check(entry: TensorEntry, shape: tuple[int, ...], matrix: PanelMatrix | None) -> None:
    if matrix is None:
        expected: tuple[str, tuple[int, ...]] = ("BF16", shape)
    elif (matrix.outputs, matrix.inputs) != shape:
        raise ModelLoadError(
            f"{entry.path}: matrix {entry.name!r}: expected {list(shape)} from config.json, found "
            f"{[matrix.outputs, matrix.inputs]}",
            hint=_ANEW,
        )
    else:
        expected = ("U8", (matrix.num_bytes,))
    if (entry.dtype, entry.shape) != expected:
        raise ModelLoadError(
            f"{entry.path}: tensor {entry.name!r}: expected {expected[0]} {list(expected[1])}, found {entry.dtype} "
            f"{list(entry.shape)}",
            hint=_ANEW,
        )


def _fill(entries: Mapping[str, TensorEntry], tensors: Mapping[str, Tensor], progress: Progress | None) -> None:
    meter = Meter(sum(entry.num_bytes for entry in entries.values()), progress)
    in_file = sorted(entries.items(), key=lambda item: item[1].start)
    with opened(in_file[0][1].path) as descriptor:
        for field, entry in in_file:
            view = tensors[field].reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, entry.num_bytes, _CHUNK_BYTES):
                chunk = view[start : start + _CHUNK_BYTES]
                read_span(descriptor, entry, chunk, entry.start + start)
                meter.add(len(chunk))
