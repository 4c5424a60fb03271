"""How long each axis of a parameter is, and which parts of it a rank holds."""

from __future__ import annotations

from dataclasses import dataclass

from corebound.sharding.geometry import Geometry
from corebound.sharding.table import Axis


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """The contiguous parts of the model's dimensions that one rank holds."""

    rank: int
    query_heads: range
    kv_heads: range
    intermediate: range
    vocab: range
    kv_head_map: tuple[int, ...]
    """For each local query head the local kv head that it reads."""
    expert_intermediate: range = range(0)
    """The channels within each expert."""
    shared_intermediate: range = range(0)
    """Those within the expert that all tokens share."""

    @property
    def even_groups(self) -> bool:
        """Return whether the local query heads share the local kv heads in groups of equal size."""
        group, rest = divmod(len(self.query_heads), len(self.kv_heads))
        return rest == 0 and self.kv_head_map == tuple(head // group for head in range(len(self.query_heads)))


def axis_size(axis: Axis, geometry: Geometry) -> int:
    """Return the length of an axis in the whole model."""
    q, kv = geometry.num_heads * geometry.head_dim, geometry.num_kv_heads * geometry.head_dim
    return {
        Axis.HIDDEN: geometry.hidden_size,
        Axis.VOCAB: geometry.vocab_size,
        Axis.QUERY: q,
        Axis.KV: kv,
        Axis.QKV_PER_HEAD: q + 2 * kv,
        Axis.QKV_STACKED: q + 2 * kv,
        Axis.QKV_PER_GROUP: q + 2 * kv,
        Axis.INTERMEDIATE: geometry.intermediate_size,
        Axis.GATE_UP_STACKED: 2 * geometry.intermediate_size,
        Axis.HEAD_DIM: geometry.head_dim,
        Axis.POSITION: geometry.num_positions,
        Axis.EXPERT: geometry.num_experts,
        Axis.EXPERT_INTERMEDIATE: geometry.expert_size,
        Axis.SHARED_INTERMEDIATE: geometry.shared_expert_size,
        Axis.SINGLE: 1,
    }[axis]


def axis_ranges(axis: Axis, geometry: Geometry, share: RankShare) -> tuple[range, ...]:
    """Return the parts of an axis that a rank holds, in the order it holds them."""
    width = geometry.head_dim

    def rows(heads: range, scale: int, offset: int = 0) -> range:
        return range(offset + heads.start * scale, offset + heads.stop * scale)

    if axis is Axis.VOCAB:
        return (share.vocab,)
    if axis is Axis.INTERMEDIATE:
        return (share.intermediate,)
    if axis is Axis.EXPERT_INTERMEDIATE:
        return (share.expert_intermediate,)
    if axis is Axis.SHARED_INTERMEDIATE:
        return (share.shared_intermediate,)
    if axis is Axis.GATE_UP_STACKED:
        return (share.intermediate, rows(share.intermediate, 1, geometry.intermediate_size))
    if axis is Axis.QUERY:
        return (rows(share.query_heads, width),)
    if axis is Axis.KV:
        return (rows(share.kv_heads, width),)
    if axis is Axis.QKV_PER_HEAD:
        assert geometry.num_heads == geometry.num_kv_heads, "q, k, v per head need as many kv heads as heads"
        return (rows(share.query_heads, 3 * width),)
    if axis is Axis.QKV_PER_GROUP:
        return _group_ranges(geometry, share)
    if axis is Axis.QKV_STACKED:
        num_q, num_kv = geometry.num_heads * width, geometry.num_kv_heads * width
        return (
            rows(share.query_heads, width),
            rows(share.kv_heads, width, num_q),
            rows(share.kv_heads, width, num_q + num_kv),
        )
    return (range(axis_size(axis, geometry)),)


def _group_ranges(geometry: Geometry, share: RankShare) -> tuple[range, ...]:
    """Return the rows of queries, keys and values of a rank where each kv head follows its queries: stacked."""
    width, group = geometry.head_dim, geometry.num_heads // geometry.num_kv_heads
    whole = (group + 2) * width
    queries, keys, values = [], [], []
    for kv in share.kv_heads:
        start = kv * whole
        heads = range(max(share.query_heads.start, kv * group), min(share.query_heads.stop, (kv + 1) * group))
        queries.append(range(start + (heads.start - kv * group) * width, start + (heads.stop - kv * group) * width))
        keys.append(range(start + group * width, start + (group + 1) * width))
        values.append(range(start + (group + 1) * width, start + whole))
    return (*queries, *keys, *values)


def inner_axes(geometry: Geometry) -> list[Axis]:
    """Return the axes within the MLPs that a model has."""
    axes = [Axis.INTERMEDIATE] if not all(map(geometry.has_experts, range(geometry.num_layers))) else []
    axes += [Axis.EXPERT_INTERMEDIATE] if geometry.num_experts else []
    return axes + ([Axis.SHARED_INTERMEDIATE] if geometry.shared_expert_size else [])
