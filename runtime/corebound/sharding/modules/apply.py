"""Splits a transformers model in place: every rank keeps its part of each matrix."""

from __future__ import annotations

from typing import Any

from torch import nn

from corebound.comm import Collectives
from corebound.errors import ShardingError
from corebound.sharding.modules.check import check_together, check_used, check_vectors, check_whole
from corebound.sharding.modules.deal import RankDeal, rank_deal
from corebound.sharding.modules.decide import Decider, Decision, units
from corebound.sharding.modules.families import table_of
from corebound.sharding.modules.finish import add_sums, pair_sums, set_attributes
from corebound.sharding.modules.layers import ColumnLinear, GatheredLinear, RowLinear
from corebound.sharding.modules.layouts import layout_ranges
from corebound.sharding.modules.meta import fill_meta
from corebound.sharding.modules.report import ShardReport, Split
from corebound.sharding.modules.sources import ModelSource, WeightSource
from corebound.sharding.modules.spec import Policy
from corebound.sharding.modules.table import config_heads
from corebound.sharding.modules.vocab import VocabEmbedding

_ACTIONS = {"column": "split_outputs", "row": "split_inputs", "skip": "replicate"}


def shard_module(
    model: nn.Module,
    collectives: Collectives,
    policy: Any = None,
    grain: int = 64,
    source: WeightSource | None = None,
) -> ShardReport:
    """Split a transformers decoder over the ranks of `collectives`, in place, for inference; return what was done.

    Every rank calls it with the same model. `policy` is a Policy, LinearSpec objects, or {BlockClass: (names of
    row-parallel layers)}, and stands above the family's table and the model's own `_tp_plan`. Dimensions that are no
    heads are cut at multiples of up to `grain`. `source` yields the weights of a model on the meta device; without it
    the weights that the model holds are cut, and each whole one is freed once its part is taken. The model is put in
    evaluation mode and needs no gradients afterwards. Its `generate` works as before: every rank calls it with the
    same input and gets the same logits.

    Raises: ShardingError naming the matrix that nothing covers or whose layout is not known, or the ranks that are too
    many; ConfigError for a policy that does not fit the model.
    """
    return _Sharding(model, collectives, Policy.of(policy), grain, source).apply()


class _Sharding:
    """One call of shard_module. All is decided before anything is changed."""

    def __init__(
        self, model: nn.Module, collectives: Collectives, policy: Policy, grain: int, source: WeightSource | None
    ) -> None:
        check_whole(model)
        self._model: Any = model
        self._collectives, self._policy = collectives, policy
        self._source: WeightSource = source or ModelSource(model)
        self._config = model.config
        self._table = table_of(self._config)
        heads = (self._table.heads if self._table else config_heads)(self._config)
        self._deal: RankDeal = rank_deal(heads, collectives.rank, collectives.size, grain=grain)
        self._decider = Decider(model, policy, self._table, heads)
        self._splits: list[Split] = []

    def apply(self) -> ShardReport:
        """Split the model."""
        found = list(units(self._model, set(self._vocabulary())))
        check_used(self._policy, [unit.name for unit in found])
        decisions = [self._decider.decide(unit) for unit in found]
        check_together(decisions)
        if self._table is None:
            check_vectors(self._model, decisions, self._deal.heads)
        ranges = [self._ranges(decision) for decision in decisions]
        whole = sum(parameter.numel() for parameter in self._model.parameters())
        self._split_vocabulary()
        for decision, parts in zip(decisions, ranges, strict=True):
            self._split(decision, parts)
        fill_meta(self._model, self._source)
        self._finish(decisions)
        return ShardReport(
            family=getattr(self._config, "model_type", type(self._model).__name__),
            rank=self._deal.rank,
            num_ranks=self._deal.num_ranks,
            query_heads=self._deal.query_heads,
            kv_heads=self._deal.kv_heads,
            splits=tuple(self._splits),
            num_elements=sum(parameter.numel() for parameter in self._model.parameters()),
            whole_num_elements=whole,
        )

    def _finish(self, decisions: list[Decision]) -> None:
        table = self._table
        set_attributes(self._model, self._deal, table, decisions)
        add_sums(self._model, self._collectives, table.sums if table else self._decider.plan.sums, decisions)
        if table and table.parallel:
            pair_sums(self._model, *table.parallel)
        if table and any(decision.splits_heads for decision in decisions):
            for adapt in table.adaptations:
                adapt(self._model, self._deal, self._collectives)
        self._model.requires_grad_(False).eval()

    def _ranges(self, decision: Decision) -> tuple[range, ...]:
        if decision.spec.partition == "skip":
            return ()
        size = decision.unit.shape[decision.split_dim]
        return layout_ranges(decision.layout, self._deal, size, decision.unit.name)

    def _split(self, decision: Decision, parts: tuple[range, ...]) -> None:
        unit, spec = decision.unit, decision.spec
        before = after = unit.shape
        if spec.partition != "skip" and unit.linear:
            layer = self._sharded_linear(decision, parts)
            self._replace(unit.name, layer)
            after = tuple(layer.weight.shape)
        elif spec.partition != "skip":
            part = nn.Parameter(self._source.part(unit.name, decision.split_dim, parts), requires_grad=False)
            self._replace(unit.name, part)
            after = tuple(part.shape)
        layout = None if spec.partition == "skip" else decision.layout
        self._splits.append(Split(unit.name, _ACTIONS[spec.partition], layout, decision.origin, before, after))

    def _sharded_linear(
        self, decision: Decision, parts: tuple[range, ...]
    ) -> ColumnLinear | GatheredLinear | RowLinear:
        unit, spec = decision.unit, decision.spec
        whole = (unit.shape[0], unit.shape[1])
        weight, bias = self._source.part(f"{unit.name}.weight", decision.split_dim, parts), None
        if unit.has_bias:
            wanted = parts if spec.partition == "column" else (range(whole[0]),)
            bias = self._source.part(f"{unit.name}.bias", 0, wanted)
        if spec.partition == "column" and spec.whole_activation:
            return GatheredLinear(weight, bias, parts=self._deal.all_columns(whole[0]), collectives=self._collectives)
        if spec.partition == "column":
            return ColumnLinear(weight, bias, whole=whole)
        if spec.summed_later and bias is not None:
            raise ShardingError(f"{unit.name}: a layer that is summed later cannot have a bias")
        inputs = parts[0] if spec.whole_activation else None
        collectives = None if spec.summed_later else self._collectives
        return RowLinear(weight, bias, whole=whole, collectives=collectives, inputs=inputs)

    def _vocabulary(self) -> tuple[Any, Any]:
        """Return the embedding of words and the head, which is None in a model without one."""
        return self._model.get_input_embeddings(), self._model.get_output_embeddings()

    def _split_vocabulary(self) -> None:
        embedding, head = self._vocabulary()
        names = {module: name for name, module in self._model.named_modules()}
        tied = head is not None and head.weight is embedding.weight
        scale = getattr(embedding, "scalar_embed_scale", None)
        if type(embedding) is not nn.Embedding and scale is None:
            raise ShardingError(f"{names[embedding]}: unknown kind of embedding {type(embedding).__name__}")
        shape = tuple(embedding.weight.shape)
        weight, parts = self._words(names[embedding], shape)
        self._replace(
            names[embedding],
            VocabEmbedding(weight, parts[self._deal.rank], shape[0], self._collectives, scale),
        )
        self._splits.append(Split(names[embedding], "split_vocab", None, "model", shape, tuple(weight.shape)))
        if head is None:
            return
        name, shape = names[head], tuple(head.weight.shape)
        if not tied:
            weight, parts = self._words(name, shape)
        bias = None if head.bias is None else self._source.part(f"{name}.bias", 0, [parts[self._deal.rank]])
        self._replace(name, GatheredLinear(weight, bias, parts=parts, collectives=self._collectives))
        self._splits.append(Split(name, "split_vocab", None, "tied" if tied else "model", shape, tuple(weight.shape)))

    def _words(self, name: str, shape: tuple[int, ...]) -> tuple[nn.Parameter, tuple[range, ...]]:
        parts = self._deal.vocab(shape[0])
        part = self._source.part(f"{name}.weight", 0, [parts[self._deal.rank]])
        return nn.Parameter(part, requires_grad=False), parts

    def _replace(self, name: str, part: nn.Module | nn.Parameter) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self._model.get_submodule(parent), leaf, part)
