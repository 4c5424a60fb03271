"""What makes a split model compute: numbers of heads, sums of blocks, one sum for two branches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from corebound.comm import Collectives
from corebound.errors import ShardingError
from corebound.sharding.modules.deal import RankDeal
from corebound.sharding.modules.decide import Decision
from corebound.sharding.modules.layers import PairedSum, RowLinear
from corebound.sharding.modules.spec import named
from corebound.sharding.modules.table import COUNTS, ModuleTable

# What attention modules of transformers call their numbers of heads, for models without a table.
_COMMON_ATTRIBUTES = {
    **dict.fromkeys(("num_heads", "num_attention_heads", "n_heads", "n_head"), "heads"),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads"), "kv_heads"),
    "num_key_value_groups": "groups",
}

# What says of a module that its output is summed over the ranks.
SUMMED = "corebound_summed"


def set_attributes(model: nn.Module, deal: RankDeal, table: ModuleTable | None, decisions: Sequence[Decision]) -> None:
    """Set the numbers of heads of the attention modules whose heads are split."""
    attributes = _COMMON_ATTRIBUTES if table is None else table.attributes
    for name in {decision.unit.parent for decision in decisions if decision.splits_heads and decision.unit.linear}:
        module = model.get_submodule(name)
        for attribute, count in attributes.items():
            if hasattr(module, attribute):
                setattr(module, attribute, COUNTS[count](deal))


def add_sums(
    model: nn.Module, collectives: Collectives, patterns: Sequence[str], decisions: Sequence[Decision]
) -> None:
    """Sum the outputs of the modules of these names in which products were left partial.

    Raises: ShardingError naming a product that nothing sums.
    """

    def total(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return collectives.all_reduce(output.contiguous())

    partial = {decision.unit.name for decision in decisions if decision.spec.summed_later}
    for name, module in model.named_modules():
        if any(re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) for pattern in patterns):
            inside = {part for part in partial if part.startswith(name + ".")}
            if inside:
                module.register_forward_hook(total)
                setattr(module, SUMMED, True)
                partial -= inside
    if partial:
        raise ShardingError(f"{min(partial)}: its product is to be summed later, but no module around it sums")


def pair_sums(model: nn.Module, first: str, second: str) -> None:
    """Let the second of two row-parallel layers of each block sum for both."""
    for name, module in model.named_modules():
        if named(name, first):
            other = model.get_submodule(name.removesuffix(first) + second)
            if isinstance(module, RowLinear) and isinstance(other, RowLinear):
                module.pair = other.pair = PairedSum()
                module.first_of_pair = True
