"""Reads what `corebound shard` wrote for a rank: as pages of the page cache, or into memory of the rank's own."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from corebound.errors import ModelLoadError
from corebound.kernels.panel_format import Kind, PanelFormat, ScaleKind
from corebound.kernels.panels import PanelMatrix
from corebound.logs import get_logger
from corebound.models.description import ModelDescription
from corebound.models.manifest import SHARDS_FILE
from corebound.models.native_weights import place_matrices
from corebound.models.shards import Shards, StoredMatrix
from corebound.models.storage import matrix_schemes
from corebound.sharding import ShardPlan
from corebound.sharding.arena import allocate
from corebound.sharding.checkpoint import TensorEntry, read_open_header
from corebound.sharding.mapped import huge_bytes, map_file
from corebound.sharding.reading import Meter, Progress, Scratch, opened, read_span
from corebound.sharding.workers import Part, run_parts
from corebound.topology import read_topology

_CHUNK_BYTES = 4 << 20  # two huge pages
_ALIGN_BYTES = 64  # what panels need
_SMALL_BYTES = 32 << 20  # what the TLB knows
_log = get_logger(__name__)


def read_rank(
    description: ModelDescription,
    plan: ShardPlan,
    rank: int,
    progress: Progress | None = None,
    *,
    num_threads: int = 1,
    mapped: bool | None = None,
) -> tuple[dict[str, PanelMatrix], dict[str, Tensor]]:
    """Return a rank's matrices in panels and its other tensors in bfloat16, by field.

    `mapped` says whether they are pages of the page cache, or are read into memory of their own. None maps where that
    costs no speed later: see _may_be_mapped and _in_huge_pages.

    Raises: ModelLoadError for a file that is damaged or does not fit config.json.
    """
    path, num_bytes = rank_file(description, plan, rank)
    shapes = plan.field_shapes(rank)
    # One descriptor, so that header and weights are of one file even where another takes its name meanwhile.
    with opened(path) as descriptor:
        matrices, entries = rank_tensors(description, plan, rank, descriptor)
        aligned = all(entries[field].start % _ALIGN_BYTES == 0 for field in matrices)
        if aligned and (mapped or (mapped is None and _may_be_mapped())):
            content = map_file(path, descriptor, num_bytes, progress, num_threads)
            if mapped or _in_huge_pages(content):
                return matrices, _place_mapped(content, matrices, entries, shapes)
            _log.debug("%s: the page cache has it in small pages: read into huge ones", path)
            del content
        tensors = place_matrices(matrices)
        fields = allocate({field: shape for field, shape in shapes.items() if field not in matrices}, torch.bfloat16)
        meter = Meter(sum(entry.num_bytes for entry in entries.values()), progress)
        _fill(descriptor, entries, {**tensors, **fields}, meter, num_threads)
    return matrices, fields


def _place_mapped(
    content: Tensor,
    matrices: Mapping[str, PanelMatrix],
    entries: Mapping[str, TensorEntry],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """Give matrices their part of a mapped file, and return the other tensors: vectors as aligned copies."""
    parts = {field: content[entry.start : entry.start + entry.num_bytes] for field, entry in entries.items()}
    for field, matrix in matrices.items():
        matrix.place(parts[field])
    others = {
        field: parts[field].view(torch.bfloat16).view(shapes[field]) for field in entries.keys() - matrices.keys()
    }
    vectors = allocate(
        {field: shape for field, shape in shapes.items() if field in others and len(shape) == 1}, torch.bfloat16
    )
    for field, vector in vectors.items():
        vector.copy_(others[field])
    return others | vectors


def rank_tensors(
    description: ModelDescription, plan: ShardPlan, rank: int, descriptor: int
) -> tuple[dict[str, PanelMatrix], dict[str, TensorEntry]]:
    """Return the matrices in the open file of a rank, without memory, and where all its tensors lie, by field.

    Raises: ModelLoadError for a file that is damaged or does not fit config.json or the manifest.
    """
    path, num_bytes = rank_file(description, plan, rank)
    entries, found_bytes, metadata = read_open_header(path, descriptor)
    if found_bytes != num_bytes:
        raise ModelLoadError(
            f"{path}: expected {num_bytes} bytes, as the manifest says, found {found_bytes}", hint=_ANEW
        )
    assert description.shards is not None
    file = description.shards.ranks[rank]
    shapes = plan.field_shapes(rank)
    if set(file.matrices) != set(matrix_schemes(description, plan, rank, None)) or set(entries) != set(shapes):
        raise ModelLoadError(f"{path}: expected the tensors that config.json says, found others", hint=_ANEW)
    for field, stored in file.matrices.items():
        _check_form(path, field, stored, gated=description.gated and field.endswith("mlp_in_weight"))
    matrices = {field: _matrix(stored) for field, stored in file.matrices.items()}
    for field, entry in entries.items():
        _check(entry, shapes[field], matrices.get(field))
    _check_metadata(description.shards, rank, path, metadata)
    return matrices, entries


def _check_metadata(shards: Shards, rank: int, path: Path, found: Mapping[str, str]) -> None:
    """Check that the manifest says of a file what the file itself says."""
    manifest = shards.path / SHARDS_FILE
    said = shards.ranks[rank].metadata(rank, shards.num_ranks, shards.weights)
    for field, text in said.items():
        if found.get(field) == text:
            continue
        place = f"ranks[{rank}].{field}" if field.startswith("matrices.") else field
        raise ModelLoadError(
            f"{manifest}: {place}: expected {found.get(field, 'nothing')}, as {path.name} says, found {text}",
            hint=_ANEW,
        )


def rank_file(description: ModelDescription, plan: ShardPlan, rank: int) -> tuple[Path, int]:
    """Return the file of a rank, and its size as the manifest has it."""
    shards = description.shards
    assert shards is not None and shards.num_ranks == plan.num_ranks
    name = shards.ranks[rank].name
    return shards.path / name, shards.files[name][1]


def _may_be_mapped() -> bool:
    """Return whether the page cache is as good a place for weights as memory of the rank's own.

    With several memory nodes it is not: a page of the cache is where the process ran that first read or wrote it, and
    there it stays.
    """
    return len(read_topology().nodes) == 1


def _in_huge_pages(content: Tensor) -> bool:
    """Return whether memory of the rank's own would not be in larger pages than a mapped file.

    Small pages cost decode some of its speed. Files written or read in whole huge pages have them in the cache of
    ext4 and XFS of newer kernels.
    """
    if content.numel() < _SMALL_BYTES or read_topology().memory.transparent_huge_pages == "never":
        return True
    return huge_bytes(content) >= content.numel() // 2


_ANEW = "write it anew with `corebound shard --force`"


def _matrix(stored: StoredMatrix) -> PanelMatrix:
    form = PanelFormat(
        kind=cast(Kind, stored.kind),
        group_size=stored.group_size,
        asymmetric=stored.asymmetric,
        scale_kind=cast(ScaleKind, stored.scale_kind),
    )
    return PanelMatrix(stored.outputs, stored.inputs, form, gated=stored.gated)


def _check_form(path: Path, field: str, stored: StoredMatrix, *, gated: bool) -> None:
    """Check what the size of a matrix does not tell, and what decides how native code reads it."""
    if stored.gated != gated:
        raise ModelLoadError(
            f"{path}: matrix {field!r}: gated: expected {gated} from config.json, found {stored.gated}", hint=_ANEW
        )
    # A tied head: rows are looked up in its panels.
    if field == "embedding_weight" and stored.kind != "bfloat16":
        raise ModelLoadError(f"{path}: matrix {field!r}: kind: expected bfloat16, found {stored.kind}", hint=_ANEW)


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


def _fill(
    descriptor: int,
    entries: Mapping[str, TensorEntry],
    tensors: Mapping[str, Tensor],
    meter: Meter,
    num_threads: int,
) -> None:
    in_file = sorted(entries.items(), key=lambda item: item[1].start)

    def parts() -> Iterator[Part]:
        for field, entry in in_file:
            content = tensors[field].reshape(-1).view(torch.uint8)
            start = 0
            while start < entry.num_bytes:
                # Up to the end of a huge page, so that no two threads touch one first.
                place = content.data_ptr() + start
                stop = min(start + _CHUNK_BYTES - place % _CHUNK_BYTES, entry.num_bytes)
                yield functools.partial(_read, descriptor, entry, content, range(start, stop), meter)
                start = stop

    run_parts(parts(), num_threads)


def _read(descriptor: int, entry: TensorEntry, content: Tensor, part: range, meter: Meter, _: Scratch) -> None:
    read_span(descriptor, entry, content[part.start : part.stop].numpy().data, entry.start + part.start)
    meter.add(len(part))
