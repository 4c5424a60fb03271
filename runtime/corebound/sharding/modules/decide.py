"""Finds the spec of every matrix of a model: the user's policy first, then the family's table, then `_tp_plan`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from corebound.errors import ConfigError, ShardingError
from corebound.sharding.modules.deal import Heads
from corebound.sharding.modules.hf_plan import ModelPlan, plan_of
from corebound.sharding.modules.layouts import Layout, layout_names
from corebound.sharding.modules.spec import LinearSpec, Policy, named
from corebound.sharding.modules.table import ModuleTable


@dataclass(frozen=True)
class Unit:
    """A matrix: a linear layer by its name, or a parameter of another module by the parameter's name.

    It describes and holds no module, so that whole weights can be freed while others are still to be split. `kind` is
    the class of the module.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    linear: bool = False
    has_bias: bool = False

    @property
    def parent(self) -> str:
        """Return the name of the module around it."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Decision:
    """A unit, what is done with it, its layout along the split dimension, and who said so."""

    unit: Unit
    spec: LinearSpec
    layout: Layout
    origin: str

    @property
    def splits_heads(self) -> bool:
        """Return whether it leaves its rank with some of the heads."""
        plain = set(layout_names(self.layout)) <= {"even", "aligned"}
        return self.spec.partition == "column" and not self.spec.whole_activation and not plain

    @property
    def split_dim(self) -> int:
        """Return the dimension of outputs or inputs; what comes before them, such as experts, stays whole."""
        if self.layout in ("head_index", "kv_head_index"):
            return 0
        return len(self.unit.shape) - (2 if self.spec.partition == "column" else 1)


def units(model: nn.Module, without: set[nn.Module]) -> Iterator[Unit]:
    """Yield every matrix of a model but those of the modules in `without`.

    Embeddings of anything but words are kept whole and are no units; neither are vectors.

    Raises: ShardingError naming a linear layer that holds codes of a quantization.
    """
    for name, module in model.named_modules():
        if module in without or isinstance(module, nn.Embedding):
            continue
        kind = type(module).__name__
        if isinstance(module, nn.Linear):
            _check_plain(name, module)
            yield Unit(name, kind, tuple(module.weight.shape), True, module.bias is not None)
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                yield Unit(f"{name}.{leaf}" if name else leaf, kind, tuple(parameter.shape))


class Decider:
    """Decides by the policy, the table and, where there is none, the model's own plan, in this order."""

    def __init__(self, model: nn.Module, policy: Policy, table: ModuleTable | None, heads: Heads) -> None:
        self._policy, self._table, self._heads = policy, table, heads
        self.plan = ModelPlan() if table else plan_of(model)
        self._family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        self._model = model
        self._in_blocks = dict(_block_layers(model, policy))

    def decide(self, unit: Unit) -> Decision:
        """Return what is done with a matrix.

        Raises: ShardingError naming a matrix that nothing covers or whose layout is not known.
        """
        for origin, specs in self._sources(unit):
            for spec in specs:
                if spec.matches(unit.name):
                    return Decision(unit, spec, self._layout(unit, spec), origin)
        if self.plan.specs and not unit.linear:
            # Of parameters that are no linear layers, such as routers, a plan names only those that it splits.
            return Decision(unit, LinearSpec(".*", "skip"), "even", "tp_plan")
        raise ShardingError(
            f"{unit.name} ({unit.kind}, {list(unit.shape)}): nothing says how it is split in a model "
            f"of type {self._family!r}",
            hint=f"give a policy: LinearSpec({unit.name.rpartition('.')[2]!r}, 'column' | 'row' | 'skip', layout)",
        )

    def _sources(self, unit: Unit) -> Iterator[tuple[str, tuple[LinearSpec, ...]]]:
        yield "policy", self._policy.specs
        partition = self._in_blocks.get(unit.name)
        table = self._table.specs if self._table else ()
        if partition is not None:
            known = next((spec for spec in table if spec.matches(unit.name)), None)
            layout = known.layout if known and known.partition == partition else None
            yield "policy", (LinearSpec(".*", "row" if partition == "row" else "column", layout),)
        yield "table", table
        yield "tp_plan", self.plan.specs

    def _layout(self, unit: Unit, spec: LinearSpec) -> Layout:
        if spec.whole_activation and spec.partition != "skip":
            return _whole_layout(unit, spec)
        if len(unit.shape) > 2:  # experts, which torch multiplies in groups
            return tuple("aligned" if name == "even" else name for name in layout_names(spec.layout or "even"))
        if spec.layout is not None or spec.partition == "skip" or not self._in_attention(unit):
            return spec.layout or "even"
        if spec.partition == "row":
            return "heads"
        outputs = unit.shape[0]
        if outputs == self._heads.query_width:
            return "heads"
        if outputs == self._heads.kv_width:
            return "kv_heads"
        raise ShardingError(
            f"{unit.name}: unknown fused layout: {outputs} outputs are neither the {self._heads.query_width} of the "
            f"queries nor the {self._heads.kv_width} of the keys",
            hint="give a policy that says how they are laid out: LinearSpec(pattern, 'column', layout)",
        )

    def _in_attention(self, unit: Unit) -> bool:
        if not unit.linear:
            return False
        if self._table is not None:
            return named(unit.parent, self._table.attention)
        # Without a table: attention modules of transformers know the size of their heads.
        return isinstance(getattr(self._model.get_submodule(unit.parent), "head_dim", None), int)


def _whole_layout(unit: Unit, spec: LinearSpec) -> Layout:
    """Return the layout of a layer whose outputs are gathered, or whose input is whole.

    Raises: ShardingError for one that is not cut in equal columns, which is what ranks put together again.
    """
    if not unit.linear:
        raise ShardingError(
            f"{unit.name}: whole_activation is of linear layers only; this is a parameter of {unit.kind}"
        )
    if layout_names(spec.layout or "even") != ("even",):
        raise ShardingError(
            f"{unit.name}: whole_activation: expected the layout 'even', found {spec.layout!r}",
            hint="leave the layout out, or whole_activation",
        )
    return "even"


def _check_plain(name: str, linear: nn.Linear) -> None:
    shape = tuple(linear.weight.shape)
    if shape != (linear.out_features, linear.in_features) or not linear.weight.is_floating_point():
        raise ShardingError(
            f"{name}: {type(linear).__name__} holds {linear.weight.dtype} {list(shape)}, which cannot be split as "
            f"{linear.out_features} outputs of {linear.in_features} inputs",
            hint="split the model before it is quantized",
        )


def _block_layers(model: nn.Module, policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield the linear layers of the policy's blocks, each `row` or `column`."""
    found: set[type] = set()
    for name, module in model.named_modules():
        kind = type(module)
        if kind not in policy.blocks:
            continue
        found.add(kind)
        linears = [inner for inner, linear in module.named_modules() if isinstance(linear, nn.Linear)]
        rows = policy.blocks[kind]
        for row in rows:
            if not any(named(inner, row) for inner in linears):
                raise ConfigError(
                    f"policy: {kind.__name__} has no linear layer {row!r}",
                    hint=f"its linear layers: {', '.join(linears)}",
                )
        for inner in linears:
            yield f"{name}.{inner}", "row" if any(named(inner, row) for row in rows) else "column"
    for block in policy.blocks:
        if block not in found:
            raise ConfigError(f"policy: the model has no block of class {block.__name__}")
