"""From a checkpoint, plain or packed, to a rank's matrices in panels and the small tensors beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from corebound.logs import get_logger
from corebound.models.description import ModelDescription
from corebound.models.native_weights import panel_matrices, place_matrices
from corebound.models.quantizing import CodePanelSink, PanelSink, packed_panel_format
from corebound.models.storage import matrix_schemes, panel_format
from corebound.quantization.scheme import Scheme
from corebound.sharding import ShardPlan
from corebound.sharding.activation_order import check_activation_order
from corebound.sharding.packed_stream import PackedField, PackedReader
from corebound.sharding.reading import Meter, Progress
from corebound.sharding.stream import RowSink, load_shard, shard_bytes

_log = get_logger(__name__)


class NativeSource:
    """A rank's part of a checkpoint: what its matrices will be is known at once, and `read` fills them.

    With a `scheme` plain matrices are quantized while they are read; packed ones stay as they are.

    Raises: ModelLoadError, ShardingError.
    """

    def __init__(self, description: ModelDescription, plan: ShardPlan, rank: int, scheme: Scheme | None) -> None:
        self._description, self._plan, self._rank = description, plan, rank
        self._schemes = matrix_schemes(description, plan, rank, scheme)
        self._reader, self._packed = packed_source(description, plan, rank)
        forms = {field: panel_format(how) for field, how in self._schemes.items()}
        for field, part in self._packed.items():
            assert description.packed is not None
            forms[field] = packed_panel_format(part, description.packed.scheme)
        self.matrices = panel_matrices(description, plan, rank, forms)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all matrices and tensors."""
        shapes = self._plan.field_shapes(self._rank)
        others = sum(math.prod(shape) for field, shape in shapes.items() if field not in self.matrices)
        return sum(matrix.num_bytes for matrix in self.matrices.values()) + torch.bfloat16.itemsize * others

    @property
    def read_bytes(self) -> int:
        """Return how many bytes `read` tells its progress of."""
        return self._meter(None).num_bytes

    def read(self, progress: Progress | None = None, num_threads: int = 1) -> dict[str, Tensor]:
        """Fill the matrices on `num_threads` threads, and return the other tensors by field, in bfloat16.

        Raises: ModelLoadError naming file and tensor.
        """
        place_matrices(self.matrices)
        sinks: dict[str, RowSink] = {}
        for field in self._schemes:
            if field not in self._packed:
                sinks[field] = PanelSink(self.matrices[field])
        meter = self._meter(progress)
        fields = load_shard(
            self._plan,
            self._rank,
            self._description.entries,
            dtype=torch.bfloat16,
            sinks=sinks,
            elsewhere=self._packed,
            meter=meter,
            num_threads=num_threads,
        )
        for field, part in self._packed.items():
            assert self._reader is not None
            self._reader.load(part, CodePanelSink(self.matrices[field]), meter)
        return fields

    def _meter(self, progress: Progress | None) -> Meter:
        return meter_of(self._description, self._plan, self._rank, self._reader, self._packed, progress)


def packed_source(
    description: ModelDescription, plan: ShardPlan, rank: int
) -> tuple[PackedReader | None, dict[str, PackedField]]:
    """Return what reads the packed matrices of a checkpoint, and these by field; None and nothing for a plain one.

    Raises: ShardingError for groups in the order of activations whose inputs ranks would cut; ModelLoadError as
        `PackedReader.fields`.
    """
    if description.packed is None:
        return None, {}
    check_activation_order(plan, description.packed, description.entries)
    reader = PackedReader(plan, rank, description.packed, description.entries)
    fields = reader.fields()
    apart = [field for field, part in fields.items() if not part.in_order]
    if apart and rank == 0:
        _log.warning(
            "%s: %d matrices with groups in the order of activations (desc_act) are kept as bfloat16, "
            "which takes %d times the memory",
            description.name,
            len(apart),
            16 // description.packed.scheme.bits,
        )
    return reader, fields


def meter_of(
    description: ModelDescription,
    plan: ShardPlan,
    rank: int,
    reader: PackedReader | None,
    packed: Mapping[str, PackedField],
    progress: Progress | None,
) -> Meter:
    """Return what counts the bytes of all that a rank reads of a checkpoint."""
    num_bytes = shard_bytes(plan, rank, description.entries, packed)
    if reader is not None:
        num_bytes += sum(reader.num_bytes(part) for part in packed.values())
    return Meter(num_bytes, progress)
