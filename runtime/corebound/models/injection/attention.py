"""Attention of an injected block: the operator where a mask allows it, plain torch where not, said once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from corebound import kernels, logs
from corebound.models.injection.masks import Mask, read_mask
from corebound.models.injection.plan import AttentionPlan, causal_plan, masked_plan
from corebound.models.injection.rows import RowStore

_log = logs.get_logger(__name__)


class StepNotes:
    """What the blocks of one model share within a step, so that only the first of them works it out.

    One for each model. Every note keeps the tensor that it was made from, and is used for that tensor alone.
    """

    def __init__(self, family: str, *, alibi_counts_slots: bool, mask_marks_hidden: bool) -> None:
        self._family = family
        self._alibi_counts_slots = alibi_counts_slots
        self._mask_marks_hidden = mask_marks_hidden
        self._plans: dict[tuple[int, ...], tuple[object, AttentionPlan | Mask]] = {}
        self._angles: dict[int, tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = {}
        self._said: set[str] = set()

    @property
    def num_notes(self) -> int:
        """Return how many things are noted."""
        return len(self._plans) + len(self._angles)

    def clear(self) -> None:
        """Forget the last step's notes."""
        self._plans.clear()
        self._angles.clear()

    def plan(self, mask: object, batch: int, num_queries: int, num_keys: int) -> AttentionPlan | Mask:
        """Return the plan of the attention operator, or the mask for plain torch when no plan can express it."""
        key = (id(mask), batch, num_queries, num_keys)
        if key in self._plans:
            return self._plans[key][1]
        plan: AttentionPlan | Mask = (
            causal_plan(batch, num_queries, num_keys)
            if mask is None
            else self._of_mask(read_mask(mask, batch, num_queries, num_keys, marks_hidden=self._mask_marks_hidden))
        )
        self._plans[key] = (mask, plan)
        return plan

    def angles(
        self, source: Tensor, make: Callable[[], tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions, cosines and sines that `make` computes from `source`, kept for this step.

        Shapes: source any; result [B * S], [rows, R / 2], [rows, R / 2].
        """
        key = id(source)
        if key not in self._angles:
            self._angles[key] = (source, make())
        return self._angles[key][1]

    def _of_mask(self, mask: Mask) -> AttentionPlan | Mask:
        if mask.bias is not None:
            self._say("adds to scores more than the hiding of keys")
        elif mask.visible.dim() == 4:
            self._say("differs between heads")
        else:
            plan = masked_plan(mask.visible)
            if plan is None:
                self._say("hides keys between others that are seen")
            elif plan.has_holes and self._alibi_counts_slots:
                self._say("has holes, over which alibi counts here")
            else:
                return plan
        return mask

    def _say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            _log.warning(
                "%s: attention in plain torch in place of the operator: the attention mask %s", self._family, reason
            )


def attend(
    q: Tensor, stores: tuple[RowStore, RowStore], plan: AttentionPlan | Mask, scale: float, slopes: Tensor | None
) -> Tensor:
    """Return the attention of a step's queries over the stored keys and values.

    Query heads share kv heads in groups of equal size.

    Shapes: q and result [B * S, Hq, D]; slopes [Hq] float32.
    """
    keys, values = stores
    if isinstance(plan, Mask):
        return masked_attention(q, keys, values, plan, scale, slopes)
    tables = plan.block_tables(keys.num_rows, keys.first)
    return kernels.attention(
        q,
        keys.blocks,
        values.blocks,
        tables,
        plan.query_starts,
        plan.context_lengths,
        scale,
        slopes,
        None,
        plan.window,
    )


def masked_attention(
    q: Tensor, keys: RowStore, values: RowStore, mask: Mask, scale: float, slopes: Tensor | None
) -> Tensor:
    """Return attention under any mask, in plain torch. Alibi counts places of the cache.

    Shapes: as `attend`.
    """
    visible = mask.visible if mask.visible.dim() == 4 else mask.visible.unsqueeze(1)
    batch, _, num_queries, num_keys = visible.shape
    # A query of padding that sees nothing sees everything instead: nothing reads its result, but it must be a number.
    hidden = ~(visible | ~visible.any(-1, keepdim=True))
    bias, dtype = ~hidden, q.dtype
    if slopes is not None or mask.bias is not None:
        # In float32, because in 16 bits a bias of many steps of alibi is off by whole ones.
        dtype = torch.float32
        bias = torch.zeros(()) if mask.bias is None else mask.bias.float()
        if slopes is not None:
            # A softmax does not see what all keys of a query have in common, so places do for distances.
            bias = bias + slopes.view(1, -1, 1, 1) * torch.arange(1 - num_keys, 1)
        bias = bias.masked_fill(hidden, torch.finfo(dtype).min)
    out = torch.nn.functional.scaled_dot_product_attention(
        q.view(batch, num_queries, *q.shape[1:]).transpose(1, 2).to(dtype),
        keys.states(batch, num_keys).to(dtype),
        values.states(batch, num_keys).to(dtype),
        attn_mask=bias,
        scale=scale,
        enable_gqa=q.shape[1] != keys.blocks.shape[1],
    )
    return out.transpose(1, 2).flatten(0, 1).to(q.dtype)
