"""The form of a family's table: everything that sharding its modules needs to know. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from corebound.sharding.modules.deal import Heads, RankDeal
from corebound.sharding.modules.spec import LinearSpec

# What an attribute of a module counts, to be set to the rank's own number.
COUNTS: dict[str, Callable[[RankDeal], int]] = {
    "heads": lambda deal: deal.num_heads,
    "kv_heads": lambda deal: deal.num_kv_heads,
    "groups": lambda deal: deal.num_heads // deal.num_kv_heads,
    "query_width": lambda deal: deal.num_heads * deal.heads.head_dim,
    "kv_width": lambda deal: deal.num_kv_heads * deal.heads.head_dim,
}


@dataclass(frozen=True, kw_only=True)
class ModuleTable:
    """How the modules of one family are split.

    `attention` is the name that its attention modules end in, and `attributes` what those compute with, by the keys of
    COUNTS. `specs` name every matrix. `sums` are modules whose output is summed over the ranks. `parallel` names two
    row-parallel layers of a block whose outputs are added, so that one sum does for both. `adaptations` are for what
    only this family does; each gets the model, the deal and the collectives.
    """

    attention: str
    attributes: Mapping[str, str]
    specs: tuple[LinearSpec, ...]
    heads: Callable[[Any], Heads]
    sums: tuple[str, ...] = ()
    parallel: tuple[str, str] | None = None
    adaptations: tuple[Callable[..., None], ...] = field(default=())


def config_heads(config: Any) -> Heads:
    """Return the heads that a configuration of transformers names in the common way."""
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return Heads(num_heads, getattr(config, "num_key_value_heads", None) or num_heads, head_dim)
