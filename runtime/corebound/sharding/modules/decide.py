"""Finds the spec of every matrix of a model: the user's policy first, then the family's table, then `_tp_plan`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from corebound.errors import ConfigError, ShardingError
from corebound.sharding.modules.deal import Heads
from corebound.sharding.modules.hf_plan import plan_specs
from corebound.sharding.modules.layouts import Layout
from corebound.sharding.modules.spec import LinearSpec, Policy
from corebound.sharding.modules.table import ModuleTable


@dataclass(frozen=True)
class Unit:
    """A matrix: a linear layer by its name, or a parameter of another module by the parameter's name."""

    name: str
    module: nn.Module
    parameter: str | None = None

    @property
    def linear(self) -> bool:
        """Return whether it is a linear layer."""
        return self.parameter is None


@dataclass(frozen=True)
class Decision:
    """A unit, what is done with it, its layout along the split dimension, and who said so."""

    unit: Unit
    spec: LinearSpec
    layout: Layout
    origin: str


def units(model: nn.Module, without: set[nn.Module]) -> Iterator[Unit]:
    """Yield every matrix of a model but those of the modules in `without`.

    Embeddings of anything but words are kept whole and are no units; neither are vectors.
    """
    for name, module in model.named_modules():
        if module in without or isinstance(module, nn.Embedding):
            continue
        if isinstance(module, nn.Linear):
            yield Unit(name, module)
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                yield Unit(f"{name}.{leaf}" if name else leaf, module, leaf)


class Decider:
    """Decides by the policy, the table and the model's own plan, in this order."""

    def __init__(self, model: nn.Module, policy: Policy, table: ModuleTable | None, heads: Heads) -> None:
        self._policy, self._table, self._heads = policy, table, heads
        self._plan = () if table else plan_specs(model)
        self._family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        self._parents = dict(model.named_modules())
        self._rows_of = dict(self._named_rows(model))
        self._by_block = {
            f"{block}.{inner}": name
            for block, names in self._rows_of.items()
            for inner, module in self._parents[block].named_modules()
            if isinstance(module, nn.Linear)
            for name in [next((n for n in names if inner == n or inner.endswith("." + n)), "")]
        }

    def _named_rows(self, model: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
        used: set[type] = set()
        for name, module in model.named_modules():
            for block, rows in self._policy.blocks.items():
                kind = type(module)
                if kind is not block:
                    continue
                used.add(block)
                linears = [inner for inner, linear in module.named_modules() if isinstance(linear, nn.Linear)]
                for row in rows:
                    if not any(inner == row or inner.endswith("." + row) for inner in linears):
                        raise ConfigError(
                            f"policy: {block.__name__} has no linear layer {row!r}",
                            hint=f"its linear layers: {', '.join(linears)}",
                        )
                yield name, rows
        for block in self._policy.blocks:
            if block not in used:
                raise ConfigError(f"policy: the model has no block of class {block.__name__}")

    def decide(self, unit: Unit) -> Decision:
        """Return what is done with a matrix.

        Raises: ShardingError naming a matrix that nothing covers or whose layout is not known.
        """
        for origin, specs in self._sources(unit):
            for spec in specs:
                if spec.matches(unit.name):
                    return Decision(unit, spec, self._layout(unit, spec), origin)
        shape = tuple(next(unit.module.parameters(recurse=False)).shape)
        raise ShardingError(
            f"{unit.name} ({type(unit.module).__name__}, {list(shape)}): nothing says how it is split in a model of "
            f"type {self._family!r}",
            hint=f"give a policy: LinearSpec({unit.name.rpartition('.')[2]!r}, 'column' | 'row' | 'skip')",
        )

    def _sources(self, unit: Unit) -> Iterator[tuple[str, tuple[LinearSpec, ...]]]:
        yield "policy", self._policy.specs
        if unit.linear and unit.name in self._by_block:
            row = bool(self._by_block[unit.name])
            layout = None if row or self._table is None else self._table_layout(unit)
            yield "policy", (LinearSpec(".*", "row" if row else "column", layout),)
        if self._table is not None:
            yield "table", self._table.specs
        yield "tp_plan", self._plan

    def _table_layout(self, unit: Unit) -> Layout | None:
        assert self._table is not None
        spec = next((spec for spec in self._table.specs if spec.matches(unit.name)), None)
        return spec.layout if spec is not None and spec.partition == "column" else None

    def _layout(self, unit: Unit, spec: LinearSpec) -> Layout:
        if spec.layout is not None or spec.partition == "skip":
            return spec.layout or "even"
        if not self._in_attention(unit):
            return "even"
        linear = unit.module
        assert isinstance(linear, nn.Linear)
        if spec.partition == "row":
            return "heads"
        if linear.out_features == self._heads.query_width:
            return "heads"
        if linear.out_features == self._heads.kv_width:
            return "kv_heads"
        raise ShardingError(
            f"{unit.name}: unknown fused layout: {linear.out_features} outputs are neither the "
            f"{self._heads.query_width} of the queries nor the {self._heads.kv_width} of the keys",
            hint="give a policy that says how they are laid out: LinearSpec(pattern, 'column', layout)",
        )

    def _in_attention(self, unit: Unit) -> bool:
        parent = unit.name.rpartition(".")[0]
        if not unit.linear:
            return False
        if self._table is not None:
            return parent.endswith("." + self._table.attention)
        return is_attention(self._parents[parent])


def is_attention(module: nn.Module) -> bool:
    """Return whether a module without a table computes attention: those of transformers know their head's size."""
    return isinstance(getattr(module, "head_dim", None), int) and any(
        isinstance(child, nn.Linear) for child in module.children()
    )
