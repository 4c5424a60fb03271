"""Masks as runs of the attention operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corebound.errors import KernelError
from corebound.models.injection.attention import attend, masked_attention
from corebound.models.injection.masks import Mask, read_mask
from corebound.models.injection.plan import causal_plan, masked_plan
from corebound.models.injection.rows import RowStore, rows_of

NUM_KEYS = 12


def causal(mask: list[list[int]], num_queries: int) -> Tensor:
    """Return which keys the last queries see under a causal mask with padding."""
    order = torch.arange(NUM_KEYS)
    seen = order <= order[NUM_KEYS - num_queries :].unsqueeze(1)
    visible: Tensor = seen & torch.tensor(mask, dtype=torch.bool).unsqueeze(1)
    return visible


def row(*spans: int) -> list[int]:
    """Return a row of a mask from lengths of padding and of tokens, by turns."""
    return [at % 2 for at, length in enumerate(spans) for _ in range(length)]


PADDINGS = {
    "none": [row(0, 12), row(0, 12)],
    "left": [row(4, 8), row(0, 12)],
    "right": [row(0, 7, 5), row(0, 12)],
    "both sides": [row(2, 7, 3), row(1, 11)],
    "a hole": [row(0, 5, 3, 4), row(3, 2, 1, 6)],
    "a row of padding": [row(12), row(0, 12)],
}


def test_plain_torch_takes_every_kind_of_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2 * 3, 6, 8, generator=generator)
    keys, values = torch.randn(2, 2, 2, NUM_KEYS, 8, generator=generator)
    visible = torch.rand(2, 6, 3, NUM_KEYS, generator=generator) < 0.5
    visible[0, 1, 2] = False
    slopes, bias = torch.linspace(0.1, 0.6, 6), torch.randn(2, 1, 3, NUM_KEYS, generator=generator)
    ours = masked_attention(q, rows_of(keys), rows_of(values), Mask(visible, bias), 0.3, slopes)
    wide_keys, wide_values = (part.double().repeat_interleave(3, 1) for part in (keys, values))
    scores = q.double().view(2, 3, 6, 8).transpose(1, 2) @ wide_keys.transpose(2, 3) * 0.3 + bias
    scores = scores + slopes.view(1, -1, 1, 1) * torch.arange(NUM_KEYS)
    expected = torch.softmax(scores.masked_fill(~visible, -torch.inf), -1) @ wide_values
    found = ours.view(2, 3, 6, 8).transpose(1, 2)
    seen = visible.any(-1)
    assert torch.allclose(found[seen].double(), expected[seen], atol=1e-5)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("num_queries", [1, 3, 12])
@pytest.mark.parametrize("padding", PADDINGS)
def test_the_operator_under_a_plan_computes_what_the_mask_says(padding: str, num_queries: int) -> None:
    visible = causal(PADDINGS[padding], num_queries)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2 * num_queries, 6, 8, generator=generator)
    stores: tuple[RowStore, RowStore] = tuple(
        rows_of(torch.randn(2, 2, NUM_KEYS, 8, generator=generator)) for _ in range(2)
    )
    plan = masked_plan(visible)
    assert plan is not None
    assert plan.has_holes == (padding == "a hole")
    slopes = None if plan.has_holes else torch.linspace(0.1, 0.6, 6)
    ours = attend(q, stores, plan, 0.3, slopes)
    expected = masked_attention(q, *stores, Mask(visible, None), 0.3, slopes)
    real = visible.any(-1).flatten()
    assert torch.allclose(ours[real], expected[real], atol=1e-5)
    assert bool(ours.isfinite().all())


def test_no_mask_is_causal() -> None:
    plan, masked = causal_plan(2, 3, NUM_KEYS), masked_plan(causal(PADDINGS["none"], 3))
    assert masked is not None
    assert torch.equal(plan.block_tables(NUM_KEYS), masked.block_tables(NUM_KEYS))
    assert torch.equal(plan.query_starts, masked.query_starts)
    assert torch.equal(plan.context_lengths, masked.context_lengths)


def test_a_window_that_moves_is_no_plan_but_the_last_step_of_one_is() -> None:
    order = torch.arange(NUM_KEYS)
    visible = ((order <= order.unsqueeze(1)) & (order > order.unsqueeze(1) - 4)).unsqueeze(0)
    assert masked_plan(visible) is None
    plan = masked_plan(visible[:, -1:])
    assert plan is not None
    assert plan.block_tables(NUM_KEYS).tolist() == [[8, 9, 10, 11]]


def test_every_form_of_a_mask_means_the_same() -> None:
    padding = torch.tensor(PADDINGS["left"])
    expected = causal(PADDINGS["left"], 12)
    as_bool = expected.unsqueeze(1)
    as_float = torch.zeros(2, 1, 12, NUM_KEYS).masked_fill(~as_bool, torch.finfo(torch.float32).min)
    forms = [(padding, False), (as_bool, False), (as_float, False), (~as_bool, True)]
    forms.append((torch.cat((as_bool, torch.zeros(2, 1, 12, 5, dtype=torch.bool)), -1), False))
    for form, marks_hidden in forms:
        mask = read_mask(form, 2, 12, NUM_KEYS, marks_hidden=marks_hidden)
        assert torch.equal(mask.visible, expected)
        assert mask.bias is None


def test_a_mask_that_adds_to_scores_keeps_what_it_adds() -> None:
    given = torch.full((2, 1, 1, NUM_KEYS), 0.5)
    mask = read_mask(given, 2, 1, NUM_KEYS, marks_hidden=False)
    assert mask.bias is not None
    assert torch.equal(mask.bias, given)


@pytest.mark.parametrize("given", ["blocks", torch.zeros(2, 1, 3, NUM_KEYS), torch.zeros(3, 1, 1, NUM_KEYS)])
def test_a_mask_of_unknown_kind_or_shape_is_an_error(given: object) -> None:
    with pytest.raises(KernelError, match="attention mask"):
        read_mask(given, 2, 1, NUM_KEYS, marks_hidden=False)
