"""Beam search over a fake model whose cache is checked: the best text is found, and no block is lost or overwritten."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corebound.engine.beams import blocks_for_beams
from corebound.engine.engine import Engine
from corebound.engine.sampling import Answer
from unit.engine.engine_fakes import LetterTokenizer, make_request, make_scheduler

VOCAB_SIZE = 4


def logprobs(token_ids, seed):
    """The fake language: log-probabilities that depend on every token so far."""
    state = np.random.default_rng([seed, *token_ids])
    scores = state.normal(scale=2.0, size=VOCAB_SIZE)
    return scores - np.logaddexp.reduce(scores)


class TableRunner:
    """Keeps tokens in slots and copies blocks as a model does with keys and values."""

    vocab_size = VOCAB_SIZE

    def __init__(self, block_size, seed, allocator):
        self.block_size, self.seed, self.allocator = block_size, seed, allocator
        self.slots = {}
        self.max_used = 0
        self.num_copies = 0

    def run(self, inputs, copies):
        assert not {copy.source for copy in copies} & {copy.target for copy in copies}
        self.num_copies += len(copies)
        for copy in copies:
            for offset in range(self.block_size):
                self.slots[copy.target, offset] = self.slots.get((copy.source, offset))
        written = [
            (part.blocks[(part.first_position + offset) // self.block_size], (part.first_position + offset))
            for part in inputs
            for offset in range(len(part.token_ids))
        ]
        assert len({(block, at % self.block_size) for block, at in written}) == len(written), "two beams write one slot"
        for part in inputs:
            for offset, token in enumerate(part.token_ids):
                position = part.first_position + offset
                self.slots[part.blocks[position // self.block_size], position % self.block_size] = token
        self.max_used = max(self.max_used, self.allocator.num_blocks - self.allocator.num_free)
        return [self._answer(part) for part in inputs if part.row is not None]

    def _answer(self, part):
        length = part.first_position + len(part.token_ids)
        seen = [self.slots[part.blocks[at // self.block_size], at % self.block_size] for at in range(length)]
        values = logprobs(seen, self.seed)
        order = np.argsort(-values)[: part.row.num_best]
        return Answer(order.tolist(), values[order].tolist())


def search(prompt, *, num_beams, max_new_tokens, block_size=2, seed=0, eos=(), num_blocks=400, max_step_tokens=3):
    scheduler = make_scheduler(num_blocks, block_size, max_num_sequences=1, max_step_tokens=max_step_tokens)
    runner = TableRunner(block_size, seed, scheduler.allocator)
    engine = Engine(runner, scheduler, LetterTokenizer(), eos_token_ids=frozenset(eos))
    engine.submit(make_request(0, prompt, num_beams=num_beams, max_new_tokens=max_new_tokens))
    outputs = []
    while engine.has_work:
        outputs += [update.output for update in engine.step() if update.output is not None]
    assert scheduler.allocator.num_free == num_blocks
    return outputs[0], runner


def mean_logprob(prompt, token_ids, seed):
    total = sum(logprobs([*prompt, *token_ids[:index]], seed)[token] for index, token in enumerate(token_ids))
    return total / len(token_ids)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 1000))
def test_with_a_beam_for_every_text_the_best_one_is_found(prompt, block_size, seed):
    output, _ = search(prompt, num_beams=64, max_new_tokens=3, block_size=block_size, seed=seed)
    best = max(itertools.product(range(VOCAB_SIZE), repeat=3), key=lambda text: mean_logprob(prompt, text, seed))
    assert output.token_ids == best
    assert output.finish_reason == "length"


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
    st.integers(2, 5),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_a_search_holds_no_more_blocks_than_it_was_admitted_with(prompt, num_beams, count, block_size, seed):
    limit = blocks_for_beams(len(prompt), len(prompt) + count - 1, num_beams, block_size)
    _, runner = search(
        prompt, num_beams=num_beams, max_new_tokens=count, block_size=block_size, seed=seed, num_blocks=limit
    )
    assert runner.max_used <= limit


def test_beams_share_what_they_have_in_common():
    _, runner = search([1] * 40, num_beams=4, max_new_tokens=8, block_size=4)
    assert runner.max_used < 10 + 4 * 3
    assert runner.num_copies > 0


@pytest.mark.parametrize("seed", range(6))
def test_an_end_token_ends_a_text_and_counts_in_its_score(seed):
    output, _ = search([1, 2], num_beams=3, max_new_tokens=10, seed=seed, eos=[0])
    assert 0 not in output.token_ids[:-1]
    assert output.finish_reason == ("stop" if output.token_ids[-1] == 0 else "length")


def test_more_beams_never_find_a_worse_text_than_greedy():
    for seed in range(20):
        wide, _ = search([1, 2], num_beams=16, max_new_tokens=5, seed=seed)
        greedy = []
        for _ in range(5):
            greedy.append(int(np.argmax(logprobs([1, 2, *greedy], seed))))
        assert mean_logprob([1, 2], wide.token_ids, seed) >= mean_logprob([1, 2], greedy, seed) - 1e-9
