"""From a model written for some ranks to a rank's part of it for another number: codes and values stay as they are."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from corebound.errors import ModelLoadError, ShardingError
from corebound.kernels.panel_format import PanelFormat
from corebound.kernels.panels import PanelMatrix
from corebound.models.description import ModelDescription
from corebound.models.native_weights import panel_matrices, place_matrices
from corebound.models.shard_reading import rank_file, rank_tensors
from corebound.models.shards import counted_ranks
from corebound.sharding import ShardPlan, shard_plan
from corebound.sharding.arena import allocate
from corebound.sharding.checkpoint import TensorEntry
from corebound.sharding.plan import Parameter
from corebound.sharding.reading import CHUNK_BYTES, Meter, Progress, Scratch, opened, read_rectangle, read_span
from corebound.sharding.workers import Part, run_parts

_GRAIN_ROWS = 64  # a panel


@dataclass(frozen=True)
class _RankParts:
    """What a rank of the written model has: its open file, its matrices without memory, and where its tensors lie."""

    descriptor: int
    matrices: Mapping[str, PanelMatrix]
    entries: Mapping[str, TensorEntry]


class _Piece(NamedTuple):
    """Rows and columns of a field of a rank of the written model."""

    rank: int
    rows: range
    columns: range


class WrittenModel:
    """The files of a model that was written for some ranks, open while it is entered.

    All that is read of a file is read of the one whose header was: another that takes its name meanwhile is not it.

    Raises: ModelLoadError.
    """

    def __init__(self, description: ModelDescription) -> None:
        shards = description.shards
        assert shards is not None
        self.description, self.plan = description, shard_plan(description, shards.num_ranks)
        self.ranks: list[_RankParts] = []
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as files:
            for rank in range(self.plan.num_ranks):
                descriptor = files.enter_context(opened(rank_file(self.description, self.plan, rank)[0]))
                self.ranks.append(_RankParts(descriptor, *rank_tensors(self.description, self.plan, rank, descriptor)))
            self._files = files.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()


class WrittenSource:
    """A rank's part of a model that was written for another number of ranks; as NativeSource for a checkpoint.

    Raises: ShardingError where a group of inputs with one scale would be cut, or parts of two be joined.
    """

    def __init__(self, written: WrittenModel, plan: ShardPlan, rank: int) -> None:
        description = written.description
        self._path, self._plan, self._rank = description.path, plan, rank
        self._before, self._ranks = written.plan, written.ranks
        # Once for all: models with experts have tens of thousands of parameters.
        self._places = [_parameter_rows(self._before, index) for index in range(self._before.num_ranks)]
        self._rows = _parameter_rows(plan, rank)
        self._of_field = _by_field(plan)
        # A packed checkpoint keeps its zeros only where one is not the middle of the codes, rank by rank.
        is_packed = description.packed is not None
        forms = {field: self._form(field, is_packed) for field in self._ranks[0].matrices}
        self.matrices = panel_matrices(description, plan, rank, forms)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all matrices and tensors."""
        others = sum(math.prod(shape) for shape in self._small().values())
        return sum(matrix.num_bytes for matrix in self.matrices.values()) + torch.bfloat16.itemsize * others

    @property
    def read_bytes(self) -> int:
        """Return how many bytes `read` tells its progress of."""
        return self.num_bytes

    def read(self, progress: Progress | None = None, num_threads: int = 1) -> dict[str, Tensor]:
        """Fill the matrices on `num_threads` threads, and return the other tensors by field, in bfloat16.

        Raises: ModelLoadError naming file and tensor.
        """
        place_matrices(self.matrices)
        fields = allocate(self._small(), torch.bfloat16)
        meter = Meter(self.num_bytes, progress)

        def parts() -> Iterator[Part]:
            for parameter in self._plan.parameters:
                for row, pieces in self._chunks(parameter):
                    if parameter.field in fields:
                        yield functools.partial(
                            self._copy, fields[parameter.field], parameter.field, row, pieces, meter
                        )
                    else:
                        yield functools.partial(self._repack, parameter.field, row, pieces, meter)

        run_parts(parts(), num_threads)
        return fields

    def _small(self) -> dict[str, tuple[int, ...]]:
        shapes = self._plan.field_shapes(self._rank)
        return {field: shape for field, shape in shapes.items() if field not in self.matrices}

    def _form(self, field: str, is_packed: bool) -> PanelFormat:
        forms = {replace(rank.matrices[field].form, asymmetric=False) for rank in self._ranks}
        if len(forms) > 1:
            raise ModelLoadError(f"{self._path}: matrix {field!r}: the ranks have it in different forms")
        form = forms.pop()
        asymmetric = any(rank.matrices[field].form.asymmetric for rank in self._ranks)
        for parameter in self._of_field[field]:
            if form.kind != "bfloat16" and parameter.rule.cut_dim == 1:
                self._check_groups(parameter, form)
        if asymmetric and is_packed:
            asymmetric = self._has_other_zeros(field, 128 if form.kind == "int8" else 8)
        return replace(form, asymmetric=asymmetric)

    def _check_groups(self, parameter: Parameter, form: PanelFormat) -> None:
        """Check that all pieces of a row are whole groups."""
        (wanted,) = self._plan.ranges(parameter, self._rank)
        done = 0
        pieces = self._column_pieces(parameter, wanted)
        for piece in pieces:
            inputs = self._ranks[piece.rank].matrices[parameter.field].inputs
            size = form.group_size or inputs
            is_whole = piece.columns.start % size == 0 and (
                piece.columns.stop % size == 0 or piece.columns.stop == inputs
            )
            if not is_whole or done % size or (form.group_size is None and len(pieces) > 1):
                share = f"{form.group_size} neighbouring" if form.group_size else "all"
                raise ShardingError(
                    f"{self._path}: cannot be written for {counted_ranks(self._plan.num_ranks)} instead of "
                    f"{self._before.num_ranks}: {share} inputs of a row of {parameter.name!r} on a rank share a scale, "
                    f"and inputs {wanted.start} to {wanted.stop} are no whole number of such groups",
                    hint="write it from the checkpoint that it was made of",
                )
            done += len(piece.columns)

    def _has_other_zeros(self, field: str, middle: int) -> bool:
        scratch = Scratch()
        for parameter in self._of_field[field]:
            for _, pieces in self._chunks(parameter):
                for piece in pieces:
                    zeros = self._take(field, piece, scratch)[2]
                    if zeros is not None and bool((zeros != middle).any()):
                        return True
        return False

    def _chunks(self, parameter: Parameter) -> Iterator[tuple[int, list[_Piece]]]:
        """Yield rows of a parameter on this rank, each as its first row in the field and the pieces it consists of."""
        row = self._rows[parameter.name]
        for part in self._plan.ranges(parameter, self._rank):
            if parameter.rule.cut_dim == 1:
                pieces = self._column_pieces(parameter, part)
            else:
                pieces = self._row_pieces(parameter, part)
            # Pieces of rows follow each other, pieces of columns lie side by side.
            for group in [pieces] if parameter.rule.cut_dim == 1 else [[piece] for piece in pieces]:
                rows = len(group[0].rows)
                width = sum(len(piece.columns) for piece in group)
                step = max(1, CHUNK_BYTES // (2 * width) // _GRAIN_ROWS) * _GRAIN_ROWS
                start = 0
                while start < rows:
                    stop = min(rows, (row + start + step) // _GRAIN_ROWS * _GRAIN_ROWS - row)
                    yield row + start, [piece._replace(rows=piece.rows[start:stop]) for piece in group]
                    start = stop
                row += rows

    def _row_pieces(self, parameter: Parameter, wanted: range) -> list[_Piece]:
        width = parameter.shape[1] if len(parameter.shape) > 1 else 1
        pieces: list[_Piece] = []
        at = wanted.start
        while at < wanted.stop:
            rank, held, first = next(found for found in self._held(parameter) if at in found[1])
            stop = min(wanted.stop, held.stop)
            begin = self._places[rank][parameter.name] + first + at - held.start
            pieces.append(_Piece(rank, range(begin, begin + stop - at), range(width)))
            at = stop
        return pieces

    def _column_pieces(self, parameter: Parameter, wanted: range) -> list[_Piece]:
        pieces: list[_Piece] = []
        rows = range(parameter.shape[0])
        for rank, held, _ in self._held(parameter):
            start, stop = max(wanted.start, held.start), min(wanted.stop, held.stop)
            if start < stop:
                pieces.append(_Piece(rank, rows, range(start - held.start, stop - held.start)))
        return pieces

    def _held(self, parameter: Parameter) -> Iterator[tuple[int, range, int]]:
        """Yield the parts that ranks of the written model have: rank, part, and where in the rank's rows it starts."""
        for rank in range(self._before.num_ranks):
            first = 0
            for part in self._before.ranges(parameter, rank):
                yield rank, part, first
                first += len(part)

    def _copy(self, target: Tensor, field: str, row: int, pieces: list[_Piece], meter: Meter, _: Scratch) -> None:
        (piece,) = pieces
        entry = self._ranks[piece.rank].entries[field]
        place = target[row : row + len(piece.rows)]
        read_rectangle(self._ranks[piece.rank].descriptor, entry, place, piece.rows.start, piece.columns)
        meter.add(place.nbytes)

    def _repack(self, field: str, row: int, pieces: list[_Piece], meter: Meter, scratch: Scratch) -> None:
        matrix = self.matrices[field]
        values, scales, zeros = zip(*(self._take(field, piece, scratch) for piece in pieces), strict=True)
        if matrix.form.kind == "bfloat16":
            matrix.put(row, torch.cat(values, 1))
        else:
            if matrix.form.asymmetric:
                middle = 128.0 if matrix.form.kind == "int8" else 8.0
                zeros = tuple(
                    torch.full_like(scale, middle) if zero is None else zero
                    for scale, zero in zip(scales, zeros, strict=True)
                )
            joined = torch.cat(zeros, 1) if matrix.form.asymmetric else None
            matrix.put_codes(row, torch.cat(values, 1), torch.cat(scales, 1), joined)
        meter.add(matrix.num_bytes * len(pieces[0].rows) // matrix.outputs)

    def _take(self, field: str, piece: _Piece, scratch: Scratch) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the values of a piece, and for codes their scales and zeros."""
        held = self._ranks[piece.rank]
        source, entry = held.matrices[field], held.entries[field]
        panels = source.panels_of(piece.rows.start, len(piece.rows))
        content = scratch.tensor(len(panels), source.panel_bytes, torch.uint8)
        start = entry.start + panels.start * source.panel_bytes
        read_span(held.descriptor, entry, content.view(-1).numpy().data, start)
        values, scales, zeros = source.rows(piece.rows.start, len(piece.rows), content.view(-1))
        size = source.padded_inputs // source.num_groups
        groups = slice(piece.columns.start // size, -(-piece.columns.stop // size))
        return (
            values[:, piece.columns.start : piece.columns.stop],
            None if scales is None else scales[:, groups],
            None if zeros is None else zeros[:, groups],
        )


def _by_field(plan: ShardPlan) -> dict[str, list[Parameter]]:
    found: dict[str, list[Parameter]] = {}
    for parameter in plan.parameters:
        found.setdefault(parameter.field, []).append(parameter)
    return found


def _parameter_rows(plan: ShardPlan, rank: int) -> dict[str, int]:
    """Return for each parameter its first row in its field on a rank."""
    rows: dict[str, int] = {}
    filled: dict[str, int] = {}
    for parameter in plan.parameters:
        rows[parameter.name] = filled.get(parameter.field, 0)
        filled[parameter.field] = rows[parameter.name] + plan.local_shape(parameter, rank)[0]
    return rows
