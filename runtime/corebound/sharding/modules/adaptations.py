"""What single families need beyond sliced weights. Each function changes one model and keeps no state elsewhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from corebound.comm import Collectives
from corebound.sharding.modules.deal import RankDeal


def slice_bloom_alibi(model: nn.Module, deal: RankDeal, collectives: Collectives) -> None:
    """Build alibi for all heads, whose number decides every slope, and keep those of this rank."""
    base: Any = model.get_submodule("transformer")
    whole = base.build_alibi_tensor
    heads = deal.query_heads

    def build(attention_mask: Tensor, num_heads: int, dtype: Any) -> Tensor:
        alibi: Tensor = whole(attention_mask, num_heads, dtype)
        per_head = alibi.view(attention_mask.shape[0], num_heads, *alibi.shape[1:])
        return per_head[:, heads.start : heads.stop].flatten(0, 1)

    base.build_alibi_tensor = build
