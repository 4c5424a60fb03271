"""The shard plan: which rank holds which part of every parameter. Pure: sizes in, ranges out, no torch, no files."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from corebound.errors import ShardingError
from corebound.sharding.axes import RankShare, axis_ranges, axis_size, inner_axes
from corebound.sharding.families import TABLES
from corebound.sharding.geometry import Geometry
from corebound.sharding.partition import balanced_grain, deal, deal_heads
from corebound.sharding.table import Axis, Decision, FamilyTable, Rule

_SIZE_NAMES = {
    Axis.INTERMEDIATE: "intermediate_size",
    Axis.EXPERT_INTERMEDIATE: "the intermediate size of an expert",
    Axis.SHARED_INTERMEDIATE: "the intermediate size of the shared expert",
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a model: its name without prefix, its layer and expert (or None), its rule and whole shape."""

    name: str
    layer: int | None
    rule: Rule
    shape: tuple[int, ...]
    expert: int | None = None

    @property
    def field(self) -> str:
        """Return the decoder's name of the tensor that this parameter is a part of."""
        expert = "" if self.expert is None else f"experts.{self.expert}."
        return self.rule.field if self.layer is None else f"layers.{self.layer}.{expert}{self.rule.field}"


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """How a model is split over `num_ranks`: what every rank holds and what is done with each parameter."""

    geometry: Geometry
    num_ranks: int
    shares: tuple[RankShare, ...]

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Return all parameters in the order in which a step reads them, stacked ones next to each other."""
        return model_parameters(self.geometry)

    @property
    def table(self) -> FamilyTable:
        """Return the family table that the plan follows."""
        return TABLES[self.geometry.family]

    def ranges(self, parameter: Parameter, rank: int) -> tuple[range, ...]:
        """Return the parts of the parameter's cut dimension that a rank holds, in the order it holds them."""
        axis = parameter.rule.axes[parameter.rule.cut_dim]
        if parameter.rule.decision is Decision.REPLICATE:
            return (range(parameter.shape[0]),)
        return axis_ranges(axis, self.geometry, self.shares[rank])

    def local_shape(self, parameter: Parameter, rank: int) -> tuple[int, ...]:
        """Return the shape of a rank's part of a parameter."""
        shape = list(parameter.shape)
        shape[parameter.rule.cut_dim] = sum(len(part) for part in self.ranges(parameter, rank))
        return tuple(shape)

    def field_shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that the decoder of a rank holds, by field."""
        if rank not in self._field_shapes:
            shapes: dict[str, tuple[int, ...]] = {}
            for parameter in self.parameters:
                field, local = parameter.field, self.local_shape(parameter, rank)
                before = shapes.get(field)
                shapes[field] = local if before is None else (before[0] + local[0], *local[1:])
            self._field_shapes[rank] = shapes
        return dict(self._field_shapes[rank])

    @functools.cached_property
    def _field_shapes(self) -> dict[int, dict[str, tuple[int, ...]]]:
        """What `field_shapes` found: a load asks several times, and a model of experts has thousands of parameters."""
        return {}

    def num_elements(self, rank: int) -> int:
        """Return how many weights a rank holds."""
        total = 0
        for shape in self.field_shapes(rank).values():
            size = 1
            for length in shape:
                size *= length
            total += size
        return total


def shard_plan(geometry: Geometry, num_ranks: int) -> ShardPlan:
    """Return the plan that splits a model over `num_ranks`.

    Raises: ShardingError that says which numbers of ranks work.
    """
    _check_splittable(geometry, num_ranks)
    plan = _deal(geometry, num_ranks)
    if not _keeps_groups(plan):
        _refuse_cut_groups(plan)
    return plan


def _deal(geometry: Geometry, num_ranks: int) -> ShardPlan:
    # The first ranks have the surplus heads and rank 0 samples as well, so the surplus of the others goes to the last.
    intermediate, experts, shared = (
        deal(size, num_ranks, grain=max(balanced_grain(size, num_ranks), geometry.input_grain), surplus_last=True)
        for size in (geometry.intermediate_size, geometry.expert_size, geometry.shared_expert_size)
    )
    vocab = deal(geometry.vocab_size, num_ranks, surplus_last=True)
    group = geometry.num_heads // geometry.num_kv_heads
    shares = tuple(
        RankShare(
            rank=rank,
            query_heads=q,
            kv_heads=kv,
            intermediate=intermediate[rank],
            vocab=vocab[rank],
            kv_head_map=tuple(head // group - kv.start for head in q),
            expert_intermediate=experts[rank],
            shared_intermediate=shared[rank],
        )
        for rank, (q, kv) in enumerate(deal_heads(geometry.num_heads, geometry.num_kv_heads, num_ranks))
    )
    return ShardPlan(geometry=geometry, num_ranks=num_ranks, shares=shares)


def model_parameters(geometry: Geometry) -> tuple[Parameter, ...]:
    """Return every parameter that a checkpoint of this model must have."""
    table = TABLES[geometry.family]

    def of(
        rules: tuple[Rule, ...], features: frozenset[str], layer: int | None = None, expert: int | None = None
    ) -> list[Parameter]:
        prefix = "" if layer is None else table.layer_prefix.format(layer=layer)
        return [
            Parameter(
                name=prefix + rule.name.format(expert=expert),
                layer=layer,
                rule=rule,
                shape=tuple(axis_size(axis, geometry) for axis in rule.axes),
                expert=expert,
            )
            for rule in rules
            if rule.needs is None or rule.needs in features
        ]

    found = of(table.rules, geometry.features)
    for layer in range(geometry.num_layers):
        has_experts = geometry.has_experts(layer)
        features = geometry.features | {"experts" if has_experts else "one_mlp"}
        found += of(table.layer_rules, features, layer)
        for expert in range(geometry.num_experts if has_experts else 0):
            found += of(table.expert_rules, features, layer, expert)
    return tuple(found)


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Return the slope of every head of the whole model; a rank takes the slice of its query heads.

    The table depends on the number of all heads: a geometric series for the largest power of two, then every second
    member of the series for twice as many. It must never be computed from a rank's own number.

    Source: Press et al., Train Short, Test Long (2022), section 3, and its rule for other numbers of heads.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * head + 1) / power) for head in range(num_heads - power)]
    return tuple(slopes)


def _keeps_groups(plan: ShardPlan) -> bool:
    """Return whether every rank has inputs of each matrix that is cut along them, and only whole groups."""
    geometry, grain = plan.geometry, plan.geometry.input_grain
    if plan.num_ranks == 1 or grain == 1:
        return True
    for axis in (Axis.QUERY, *inner_axes(geometry)):
        size = axis_size(axis, geometry)
        for part in (part for share in plan.shares for part in axis_ranges(axis, geometry, share)):
            if not part or part.start % grain or (part.stop % grain and part.stop != size):
                return False
    return True


def _refuse_cut_groups(plan: ShardPlan) -> None:
    geometry = plan.geometry
    inner = min(axis_size(axis, geometry) for axis in inner_axes(geometry))
    largest = min(geometry.num_heads, geometry.vocab_size, inner // geometry.input_grain)
    counts = [str(count) for count in range(1, max(1, largest) + 1) if _keeps_groups(_deal(geometry, count))]
    raise ShardingError(
        f"cannot split {geometry.name} over {plan.num_ranks} ranks: {geometry.input_grain} neighbouring inputs share a "
        f"scale and must stay on one rank; there are {geometry.num_heads} heads of {geometry.head_dim} inputs and "
        f"{inner} inputs of the MLP",
        hint=f"use {_listed(counts)}",
    )


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _check_splittable(geometry: Geometry, num_ranks: int) -> None:
    limits = {"num_attention_heads": geometry.num_heads}
    limits |= {_SIZE_NAMES[axis]: axis_size(axis, geometry) for axis in inner_axes(geometry)}
    limits["vocab_size"] = geometry.vocab_size
    field, largest = min(limits.items(), key=lambda item: item[1])
    if 1 <= num_ranks <= largest:
        return
    counts = [str(count) for count in range(1, largest + 1)]
    usable = f"any number from 1 to {largest}" if largest > 12 else _listed(counts)
    raise ShardingError(
        f"cannot split {geometry.name} over {num_ranks} ranks: {field} is {largest}", hint=f"use {usable}"
    )
