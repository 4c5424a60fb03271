"""Whether the groups of packed matrices are of neighbouring inputs, where a split over ranks needs that."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from corebound.errors import ModelLoadError, ShardingError
from corebound.quantization.packed import PackedFormat
from corebound.sharding.checkpoint import TensorEntry
from corebound.sharding.expected import packed_name
from corebound.sharding.plan import ShardPlan
from corebound.sharding.table import Decision


def check_activation_order(plan: ShardPlan, packed: PackedFormat | None, entries: Mapping[str, TensorEntry]) -> None:
    """Check that no matrix whose inputs are cut has its groups in the order of activations. Reads `g_idx` alone.

    Raises: ShardingError naming file and tensor.
    """
    if packed is None or not packed.activation_order or plan.num_ranks == 1:
        return
    for parameter in plan.parameters:
        entry = entries.get(packed_name(parameter, "g_idx"))
        if parameter.rule.decision is Decision.SPLIT_INPUTS and entry is not None and not in_order(entry, packed):
            raise ShardingError(
                f"cannot split {plan.geometry.name} over {plan.num_ranks} ranks: {entry.path}: tensor {entry.name!r}: "
                "the groups are in the order of activations (desc_act), so their inputs lie apart",
                hint="use 1 rank, or a checkpoint that was made with desc_act false",
            )


def in_order(entry: TensorEntry, packed: PackedFormat) -> bool:
    """Return whether `g_idx` says that the group of each input is the one that its place says.

    Raises: ModelLoadError naming the file.
    """
    num_inputs = entry.shape[0]
    size = packed.scheme.group_size or num_inputs
    try:
        with entry.path.open("rb") as file:
            file.seek(entry.start)
            found = file.read(entry.num_bytes)
    except OSError as error:
        raise ModelLoadError(f"{entry.path}: cannot be read: {error.strerror or error}") from error
    return found == array("i", (place // size for place in range(num_inputs))).tobytes()
