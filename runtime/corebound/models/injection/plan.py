"""Which keys each query of a step sees, worked out once a step from the mask that transformers hands to every block."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class AttentionPlan:
    """A step's queries as sequences of the attention operator, each with the places of the keys it sees, in order.

    A sequence here is a run of queries of one row of the batch each of which sees one key more than the one before.

    Shapes: query_starts [N + 1] and context_lengths [N] int32; batch_rows [N]; places [N, K]; N runs, K keys at most.
    """

    query_starts: Tensor
    context_lengths: Tensor
    batch_rows: Tensor
    places: Tensor
    has_holes: bool  # some row's keys do not lie side by side
    _tables: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def block_tables(self, num_rows: int, first: int = 0) -> Tensor:
        """Return the block tables for a store in which each sequence has `num_rows` rows and place 0 is row `first`.

        Shapes: [N, K] int32.
        """
        if (num_rows, first) not in self._tables:
            tables = self.batch_rows.unsqueeze(1) * num_rows + first + self.places
            self._tables[num_rows, first] = tables.to(torch.int32)
        return self._tables[num_rows, first]


def causal_plan(batch: int, num_queries: int, num_keys: int) -> AttentionPlan:
    """Return the plan without a mask: the queries are the last tokens, each sees itself and all before it."""
    return AttentionPlan(
        query_starts=torch.arange(batch + 1, dtype=torch.int32) * num_queries,
        context_lengths=torch.full((batch,), num_keys, dtype=torch.int32),
        batch_rows=torch.arange(batch),
        places=torch.arange(num_keys).expand(batch, num_keys),
        has_holes=False,
    )


def masked_plan(visible: Tensor) -> AttentionPlan | None:
    """Return the plan for a mask, or None when some query's keys are not the first ones of its row's.

    A query that sees no key belongs to padding: nothing reads its result, so it is given keys of padding to look at.

    Shapes: visible [B, S, T] bool.
    """
    batch, num_queries, num_keys = visible.shape
    counts = visible.sum(-1)
    keys = visible.any(1)
    order = keys.cumsum(1).unsqueeze(1)
    if not torch.equal(visible, keys.unsqueeze(1) & (order <= counts.unsqueeze(2))):
        return None
    first = torch.ones(batch, num_queries, dtype=torch.bool)
    before, now = counts[:, :-1], counts[:, 1:]
    first[:, 1:] = torch.where(now > 0, (now != before + 1) | (before == 0), before > 0)
    starts = first.flatten().nonzero().flatten()
    ends = torch.cat((starts[1:], torch.tensor([batch * num_queries])))
    rows = starts // num_queries
    seen = counts.flatten()[ends - 1]
    lengths = torch.where(seen > 0, seen, ends - starts)
    places = torch.where(keys, torch.arange(num_keys), num_keys).sort(-1).values[rows].clamp(max=num_keys - 1)
    places = torch.where((seen > 0).unsqueeze(1), places, torch.arange(num_keys))
    return AttentionPlan(
        query_starts=torch.cat((starts, ends[-1:])).to(torch.int32),
        context_lengths=lengths.to(torch.int32),
        batch_rows=rows,
        places=places[:, : int(lengths.max())].contiguous(),
        has_holes=_has_holes(keys),
    )


def _has_holes(keys: Tensor) -> bool:
    """Return whether some row of [B, T] has a false between two that are true."""
    steps = (keys[:, 1:] & ~keys[:, :-1]).sum(1) + keys[:, 0]
    return bool((steps > 1).any())
