"""The executor on ranks that are threads: every rank computes the same step, and rank 0 gets the answers."""

import itertools
import math

import pytest
import torch

from corebound.engine import executor as module
from corebound.engine.executor import Executor
from corebound.engine.step import SamplingRow, StepInput
from fixtures.thread_group import run_ranks

VOCAB_SIZE = 3000


class FakeDecoder:
    """Logits that depend on the tokens of the step; keeps every batch it saw."""

    best_words = None
    greedy_steps = None

    def __init__(self, rank, size):
        cuts = [VOCAB_SIZE * index // size for index in range(size + 1)]
        self.vocab_start, self.vocab_stop = cuts[rank], cuts[rank + 1]
        self.batches = []

    def forward(self, batch, kv_cache):
        self.batches.append(batch.token_ids.tolist())
        words = torch.arange(self.vocab_start, self.vocab_stop, dtype=torch.float32)
        rows = batch.token_ids[batch.logits_rows].float().unsqueeze(1)
        return torch.sin(words * 12.9898 + rows * 78.233)


def run_on(num_ranks, steps):
    """Run steps on ranks that are threads and return rank 0's answers and all decoders."""
    decoders = [FakeDecoder(rank, num_ranks) for rank in range(num_ranks)]

    def rank_main(collectives):
        executor = Executor(decoders[collectives.rank], [], collectives, block_size=4)
        if collectives.rank:
            return executor.follow()
        answers = [executor.run(parts) for parts in steps]
        executor.stop()
        return answers

    return run_ranks(num_ranks, rank_main)[0], decoders


def part(tokens, **row):
    return StepInput(tokens, 0, list(range(-(-len(tokens) // 4))), SamplingRow(**row) if row or row == {} else None)


STEPS = [
    [part([5, 6, 7]), part([9])],
    [StepInput([1, 2], 0, [0], None)],
    [part([3], temperature=1.0, seed=5), part([4], temperature=0.1, top_p=0.9, seed=6)],
    [part([8], temperature=50.0, top_p=0.99, seed=7)],  # a nucleus of nearly all words: several exchanges
    [part(list(range(2000)))],  # more than the first message holds
]


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_ranks_compute_equal_steps_and_the_answers_are_those_of_one_rank(num_ranks):
    alone, one = run_on(1, STEPS)
    answers, decoders = run_on(num_ranks, STEPS)
    assert answers == alone
    for decoder in decoders:
        assert decoder.batches == one[0].batches
    assert [len(answer) for answer in answers] == [2, 0, 2, 1, 1]


def test_a_step_of_many_tokens_needs_the_second_message():
    words = module.encode_step(STEPS[-1], 4)
    assert len(words) > module._INLINE_WORDS


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_best_words_that_the_decoder_found_are_not_looked_for_again(num_ranks, monkeypatch):
    class Found(FakeDecoder):
        def forward(self, batch, kv_cache):
            logits = super().forward(batch, kv_cache)
            self.best_words = find(logits)
            return logits

    find = module.sampling.find_best_words
    greedy = [STEPS[0], STEPS[1], STEPS[4]]
    expected, _ = run_on(1, greedy)
    monkeypatch.setattr(module.sampling, "find_best_words", None)
    monkeypatch.setitem(globals(), "FakeDecoder", Found)
    answers, _ = run_on(num_ranks, greedy)
    assert answers == expected


class Stepping(FakeDecoder):
    """A decoder that takes steps together, as a loop around its own forward and a gather."""

    def __init__(self, rank, size, num_able):
        super().__init__(rank, size)
        self.greedy_steps = self.step_on if rank < num_able else None
        self.num_together = []

    def join(self, collectives):
        self.collectives = collectives

    def step_on(self, batch, kv_cache, num_steps):
        self.num_together.append(num_steps)
        found, tokens = [], batch.token_ids.tolist()
        for ahead in range(num_steps):
            words = module.encode_step([StepInput([token], 3 + ahead, [0, 1, 2], SamplingRow()) for token in tokens], 4)
            best = module.sampling.find_best_words(self.forward(module.decode_step(words).batch, kv_cache))
            gathered = self.collectives.all_gather(module.sampling.greedy_offer(best, self.vocab_start))
            answers = module.sampling.merge(gathered, [SamplingRow()] * len(tokens), [])
            tokens = [answer.token_ids[0] for answer in answers]
            found.append(module.BestWords(module.array("f", [1.0] * len(tokens)), module.array("i", tokens)))
        return found


@pytest.mark.parametrize(("num_ranks", "num_able"), [(1, 1), (2, 2), (3, 3), (3, 2), (2, 0)])
def test_steps_are_done_together_where_all_ranks_can(num_ranks, num_able, monkeypatch):
    monkeypatch.setattr(module.time, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(module, "steps_together", lambda step_s: step_s)
    decoders = [Stepping(rank, num_ranks, num_able) for rank in range(num_ranks)]
    parts = [StepInput([token], 3, [0, 1, 2], SamplingRow()) for token in (5, 900)]

    def rank_main(collectives):
        decoder = decoders[collectives.rank]
        decoder.join(collectives)
        executor = Executor(decoder, [], collectives, block_size=4)
        if collectives.rank:
            return executor.follow()
        assert executor.max_greedy_steps == (math.inf if num_able == num_ranks else 0)
        answers = executor.run_greedily(parts, 4) if executor.max_greedy_steps else []
        assert not executor.is_in_step
        assert executor.max_greedy_steps == (1 / 4 if answers else 0)  # a second of the clock for four steps
        executor.run(parts)
        assert executor.max_greedy_steps == (math.inf if answers else 0)
        executor.stop()
        return answers

    answers = run_ranks(num_ranks, rank_main)[0]
    expected = []
    for _ in answers:
        expected.append(run_on(1, [parts])[0][0])
        parts = [
            StepInput(answer.token_ids, part.first_position + 1, part.blocks, SamplingRow())
            for part, answer in zip(parts, expected[-1], strict=True)
        ]
    assert answers == expected and len(answers) == (4 if num_able == num_ranks else 0)
    assert [decoder.num_together for decoder in decoders] == [[4] if answers else []] * num_ranks
