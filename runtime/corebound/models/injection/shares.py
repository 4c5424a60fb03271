"""Which heads a block computes: all of them, or a rank's."""

from __future__ import annotations

from dataclasses import dataclass

from corebound.comm import Collectives
from corebound.models.injection.description import BlockDescription
from corebound.sharding import alibi_slopes
from corebound.sharding.modules.deal import Heads, rank_deal


@dataclass(frozen=True, kw_only=True)
class HeadShare:
    """The heads of one rank. Query heads share kv heads in groups of equal size, in order.

    `owned_kv_heads` says of each kv head whether it counts here in a sum over all ranks' kv heads. `slopes` are those
    of alibi for the query heads.
    """

    num_heads: int
    num_kv_heads: int
    owned_kv_heads: tuple[bool, ...]
    slopes: tuple[float, ...]
    sharded: bool


def head_share(description: BlockDescription, collectives: Collectives, *, sharded: bool) -> HeadShare:
    """Return the heads that this rank's blocks compute.

    Raises: ShardingError for more ranks than heads.
    """
    heads = Heads(description.num_heads, description.num_kv_heads, description.head_dim)
    rank, num_ranks = (collectives.rank, collectives.size) if sharded else (0, 1)
    deal = rank_deal(heads, rank, num_ranks)
    slopes = alibi_slopes(description.num_heads)
    owned = [
        head in deal.owned_kv_heads and head not in deal.kv_heads[:place] for place, head in enumerate(deal.kv_heads)
    ]
    return HeadShare(
        num_heads=deal.num_heads,
        num_kv_heads=deal.num_kv_heads,
        owned_kv_heads=tuple(owned),
        slopes=tuple(slopes[deal.query_heads.start : deal.query_heads.stop]),
        sharded=sharded,
    )
