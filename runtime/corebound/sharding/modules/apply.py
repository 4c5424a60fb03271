"""Splits a transformers model in place: every rank keeps its part of each matrix."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from corebound.comm import Collectives
from corebound.errors import ShardingError
from corebound.sharding.modules.deal import RankDeal, rank_deal
from corebound.sharding.modules.decide import Decider, Decision, units
from corebound.sharding.modules.families import table_of
from corebound.sharding.modules.layers import ColumnLinear, PairedSum, RowLinear
from corebound.sharding.modules.layouts import layout_ranges
from corebound.sharding.modules.report import ShardReport, Split
from corebound.sharding.modules.sources import ModelSource, WeightSource
from corebound.sharding.modules.spec import Policy
from corebound.sharding.modules.table import COUNTS, ModuleTable, config_heads
from corebound.sharding.modules.vocab import VocabEmbedding, VocabHead


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
    return _Sharding(model, collectives, Policy.of(policy), grain, source or ModelSource(model)).apply()


class _Sharding:
    """One call of shard_module."""

    def __init__(
        self, model: nn.Module, collectives: Collectives, policy: Policy, grain: int, source: WeightSource
    ) -> None:
        self._model: Any = model
        self._collectives, self._policy, self._source = collectives, policy, source
        self._config = model.config
        self._table: ModuleTable | None = table_of(self._config)
        heads = (self._table.heads if self._table else config_heads)(self._config)
        self._deal: RankDeal = rank_deal(heads, collectives.rank, collectives.size, grain=grain)
        self._decider = Decider(model, policy, self._table, heads)
        self._splits: list[Split] = []

    def apply(self) -> ShardReport:
        """Split the model; decide everything before anything is changed."""
        embedding, head = self._model.get_input_embeddings(), self._model.get_output_embeddings()
        decisions = [self._decider.decide(unit) for unit in units(self._model, {embedding, head} - {None})]
        ranges = [self._ranges(decision) for decision in decisions]
        whole = sum(parameter.numel() for parameter in self._model.parameters())
        self._split_vocabulary(embedding, head)
        for decision, parts in zip(decisions, ranges, strict=True):
            self._split(decision, parts)
        self._set_attributes()
        self._pair_sums()
        self._add_sums()
        for adapt in self._table.adaptations if self._table else ():
            adapt(self._model, self._deal, self._collectives)
        self._model.requires_grad_(False).eval()
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

    def _ranges(self, decision: Decision) -> tuple[range, ...]:
        if decision.spec.partition == "skip":
            return ()
        weight = _weight(decision)
        dim = _split_dim(decision, weight)
        return layout_ranges(decision.layout, self._deal, weight.shape[dim], decision.unit.name)

    def _split(self, decision: Decision, parts: tuple[range, ...]) -> None:
        unit, spec = decision.unit, decision.spec
        weight = _weight(decision)
        before = tuple(weight.shape)
        if spec.partition == "skip":
            self._note(decision, before, before)
            return
        dim = _split_dim(decision, weight)
        if not unit.linear:
            part = nn.Parameter(self._source.part(unit.name, dim, parts), requires_grad=False)
            setattr(unit.module, str(unit.parameter), part)
            self._note(decision, before, tuple(part.shape))
            return
        local = self._source.part(f"{unit.name}.weight", dim, parts)
        self._replace(unit.name, self._sharded_linear(decision, local, parts))
        self._note(decision, before, tuple(local.shape))

    def _sharded_linear(self, decision: Decision, local: Tensor, parts: tuple[range, ...]) -> nn.Module:
        unit, spec = decision.unit, decision.spec
        linear = unit.module
        assert isinstance(linear, nn.Linear)
        whole = (linear.out_features, linear.in_features)
        bias = None
        if linear.bias is not None:
            name = f"{unit.name}.bias"
            bias = self._source.part(name, 0, parts if spec.partition == "column" else [range(whole[0])])
        if spec.partition == "column":
            return ColumnLinear(local, bias, whole=whole)
        if spec.summed_later and bias is not None:
            raise ShardingError(f"{unit.name}: a layer that is summed later cannot have a bias")
        return RowLinear(local, bias, whole=whole, collectives=None if spec.summed_later else self._collectives)

    def _split_vocabulary(self, embedding: Any, head: Any) -> None:
        names = {module: name for name, module in self._model.named_modules()}
        tied = head is not None and head.weight is embedding.weight
        num_words = embedding.weight.shape[0]
        parts = self._deal.vocab(num_words)
        mine = parts[self._deal.rank]
        if type(embedding) is not nn.Embedding and not hasattr(embedding, "embed_scale"):
            raise ShardingError(f"{names[embedding]}: unknown kind of embedding {type(embedding).__name__}")
        name, shape = names[embedding], tuple(embedding.weight.shape)
        weight = nn.Parameter(self._source.part(f"{name}.weight", 0, [mine]), requires_grad=False)
        scale = getattr(embedding, "embed_scale", None)
        self._replace(name, VocabEmbedding(weight, mine, num_words, self._collectives, scale))
        self._splits.append(Split(name, "split_vocab", None, "model", shape, tuple(weight.shape)))
        if head is None:
            return
        name, shape = names[head], tuple(head.weight.shape)
        if not tied:
            parts = self._deal.vocab(shape[0])
            weight = nn.Parameter(self._source.part(f"{name}.weight", 0, [parts[self._deal.rank]]), requires_grad=False)
        bias = None
        if head.bias is not None:
            bias = self._source.part(f"{name}.bias", 0, [parts[self._deal.rank]])
        self._replace(name, VocabHead(weight, bias, parts, self._collectives))
        self._splits.append(Split(name, "split_vocab", None, "tied" if tied else "model", shape, tuple(weight.shape)))

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self._model.get_submodule(parent), leaf, module)

    def _note(self, decision: Decision, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        action = {"column": "split_outputs", "row": "split_inputs", "skip": "replicate"}[decision.spec.partition]
        layout = None if decision.spec.partition == "skip" else decision.layout
        self._splits.append(Split(decision.unit.name, action, layout, decision.origin, before, after))

    def _set_attributes(self) -> None:
        if self._table is None:
            return
        for name, module in self._model.named_modules():
            if not name.endswith("." + self._table.attention):
                continue
            for attribute, count in self._table.attributes.items():
                if hasattr(module, attribute):
                    setattr(module, attribute, COUNTS[count](self._deal))

    def _pair_sums(self) -> None:
        if self._table is None or self._table.parallel is None:
            return
        first, second = self._table.parallel
        for name, module in self._model.named_modules():
            if not name.endswith("." + first):
                continue
            other = self._model.get_submodule(name.removesuffix(first) + second)
            if isinstance(module, RowLinear) and isinstance(other, RowLinear):
                module.pair = other.pair = PairedSum()
                module.first_of_pair = True

    def _add_sums(self) -> None:
        def total(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return self._collectives.all_reduce(output.contiguous())

        for name, module in self._model.named_modules():
            if self._table and any(name.endswith("." + sums) for sums in self._table.sums):
                module.register_forward_hook(total)


def _weight(decision: Decision) -> Tensor:
    unit = decision.unit
    tensor: Tensor = getattr(unit.module, unit.parameter or "weight")
    return tensor


def _split_dim(decision: Decision, weight: Tensor) -> int:
    """Return the dimension of outputs or inputs; what comes before them, such as experts, stays whole."""
    if decision.spec.layout in ("head_index", "kv_head_index"):
        return 0
    return weight.dim() - (2 if decision.spec.partition == "column" else 1)
