"""Sampling over a cut vocabulary: equal to sampling over the whole one, whatever the cut."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from corebound.engine import sampling
from corebound.engine.step import SamplingRow


def sample(logits, rows, widths):
    """Sample as the ranks of `widths` would, and return the answers and the number of exchanges."""
    shards, start = [], 0
    for width in widths:
        shard = logits[:, start : start + width].clone()
        sampling.penalise(shard, rows, start)
        shards.append((shard, start))
        start += width
    assert start == logits.shape[1]
    count, num_exchanges = sampling.num_candidates(rows), 0
    while True:
        offers = [sampling.local_candidates(shard, rows, start, count) for shard, start in shards]
        gathered, num_exchanges = torch.stack(offers), num_exchanges + 1
        if not (sampling.may_need_more(rows) and sampling.needs_more(gathered, rows, widths)):
            return sampling.merge(gathered, rows, widths), num_exchanges
        count *= sampling.GROWTH


def draw(logits, widths=None, **row):
    answers, _ = sample(logits.reshape(1, -1), [SamplingRow(**row)], widths or [logits.numel()])
    return answers[0].token_ids[0]


def cuts(width):
    """All kinds of ways to cut a vocabulary of `width`."""
    return [[width], [width // 2, width - width // 2], [1, width - 1], [width // 3] * 2 + [width - 2 * (width // 3)]]


def random_logits(size, seed=0, scale=3.0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


@given(st.lists(st.integers(-3, 3), min_size=4, max_size=40), st.integers(1, 4))
def test_greedy_takes_the_first_of_equal_logits_like_argmax(values, num_ranks):
    logits = torch.tensor(values, dtype=torch.float32)
    widths = [len(values) // num_ranks] * (num_ranks - 1)
    widths.append(len(values) - sum(widths))
    assert draw(logits, widths) == int(torch.argmax(logits))


def test_rows_of_a_batch_do_not_touch_each_other():
    logits = torch.stack([random_logits(50, seed) for seed in range(5)])
    rows = [
        SamplingRow(),
        SamplingRow(temperature=1.0, seed=1),
        SamplingRow(temperature=0.7, top_k=5, seed=2),
        SamplingRow(temperature=1.3, top_p=0.8, seed=3),
        SamplingRow(repetition_penalty=1.5, seen=np.arange(20, dtype=np.int32)),
    ]
    together, _ = sample(logits.clone(), rows, [20, 30])
    alone = [sample(logits[index : index + 1].clone(), [row], [50])[0][0] for index, row in enumerate(rows)]
    assert together == alone


def transformers_distribution(logits, seen, *, temperature, top_k, top_p, penalty):
    scores = logits.reshape(1, -1).clone()
    scores = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), scores)
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return torch.softmax(scores, -1)[0].double().numpy()


@pytest.mark.parametrize("widths", [[24], [10, 14]])
@pytest.mark.parametrize(
    "row",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.5, "top_k": 6},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.2, "top_k": 8, "top_p": 0.6},
        {"temperature": 1.0, "repetition_penalty": 1.4},
    ],
    ids=str,
)
def test_draws_follow_the_distribution_of_transformers(row, widths):
    logits = random_logits(24, seed=4, scale=1.5)
    seen = [2, 3, 5, 7, 11]
    expected = transformers_distribution(
        logits,
        seen,
        temperature=row["temperature"],
        top_k=row.get("top_k", 0),
        top_p=row.get("top_p", 1.0),
        penalty=row.get("repetition_penalty", 1.0),
    )
    num_draws = 2000
    rows = [SamplingRow(**row, seed=9, position=index, seen=np.array(seen, np.int32)) for index in range(num_draws)]
    answers, _ = sample(logits.repeat(num_draws, 1), rows, widths)
    counts = np.bincount([answer.token_ids[0] for answer in answers], minlength=24)
    possible = expected > 0
    assert counts[~possible].sum() == 0, "a token was drawn that top-k or top-p excludes"
    expected_counts = expected[possible] * num_draws
    chi_square = float(((counts[possible] - expected_counts) ** 2 / expected_counts).sum())
    freedom = int(possible.sum()) - 1
    # Far beyond the 0.9999 quantile (Wilson and Hilferty): the noise is fixed, so this cannot flicker.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.8 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi_square < limit


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 1000),
    st.sampled_from([{}, {"top_k": 7}, {"top_p": 0.9}, {"top_k": 20, "top_p": 0.5}]),
)
def test_a_seed_gives_the_same_token_however_the_vocabulary_is_cut(seed, position, limits):
    logits = random_logits(300, seed=position)
    tokens = {draw(logits, cut, temperature=1.1, seed=seed, position=position, **limits) for cut in cuts(300)}
    assert len(tokens) == 1


def test_a_nucleus_wider_than_the_first_exchange_is_still_exact():
    logits = random_logits(4000, scale=0.01)
    rows = [SamplingRow(temperature=1.0, top_p=0.9, seed=index) for index in range(20)]
    answers, num_exchanges = sample(logits.repeat(20, 1), rows, [1500, 2500])
    assert num_exchanges == 3
    order = torch.argsort(logits, descending=True)
    before = torch.softmax(logits[order].double(), 0).cumsum(0) - torch.softmax(logits[order].double(), 0)
    nucleus = order[before < 0.9].numpy()
    for row, answer in zip(rows, answers, strict=True):
        noise = sampling.gumbel_noise(row.seed, row.position, nucleus)
        assert answer.token_ids[0] == int(nucleus[np.argmax(logits[nucleus].numpy() + noise)])


def test_a_narrow_nucleus_takes_one_exchange():
    logits = random_logits(4000, scale=5.0)
    _, num_exchanges = sample(logits.reshape(1, -1), [SamplingRow(temperature=1.0, top_p=0.9)], [2000, 2000])
    assert num_exchanges == 1


def test_a_tiny_top_p_is_greedy():
    logits = random_logits(100)
    assert draw(logits, [40, 60], temperature=2.0, top_p=1e-6, seed=3) == int(logits.argmax())


def test_top_k_beyond_the_vocabulary_is_no_limit():
    logits = random_logits(10)
    assert draw(logits, [3, 7], temperature=1.0, top_k=50, seed=3) == draw(logits, temperature=1.0, seed=3)


@pytest.mark.parametrize("widths", [[12], [5, 7], [1, 11]])
def test_equal_logits_at_the_edge_of_top_k_give_the_lowest_ids(widths):
    logits = torch.zeros(12)
    drawn = {draw(logits, widths, temperature=1.0, top_k=4, seed=seed) for seed in range(60)}
    assert drawn == {0, 1, 2, 3}


def test_the_best_tokens_come_with_their_log_probabilities():
    logits = random_logits(60)
    answers, _ = sample(logits.reshape(1, -1), [SamplingRow(num_best=8)], [25, 35])
    expected = torch.log_softmax(logits, 0).topk(8)
    assert answers[0].token_ids == expected.indices.tolist()
    np.testing.assert_allclose(answers[0].logprobs, expected.values.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    "row",
    [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}, {"temperature": 0.5, "top_p": 0.9}, {"num_best": 4}],
)
def test_logits_that_are_not_numbers_have_no_token_and_their_neighbours_have_theirs(row):
    logits = random_logits(40).reshape(2, 20)
    alone = draw(logits[1].clone(), [10, 10], **row)
    logits[0, 13] = math.nan
    (broken, whole), num_exchanges = sample(logits, [SamplingRow(**row), SamplingRow(**row)], [10, 10])
    assert broken.token_ids == []
    assert whole.token_ids[0] == alone
    assert num_exchanges == 1


def test_the_noise_of_neighbours_is_unrelated():
    ids = np.arange(20_000)
    base = sampling.gumbel_noise(1, 1, ids)
    for other in (sampling.gumbel_noise(2, 1, ids), sampling.gumbel_noise(1, 2, ids), np.roll(base, 1)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03
    assert abs(base.mean() - 0.5772) < 0.03
    assert abs(base.var() - math.pi**2 / 6) < 0.06
