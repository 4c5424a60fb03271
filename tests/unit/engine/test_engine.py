"""The engine over a fake model: right tokens whatever the order, the batch and the memory."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corebound.engine.engine import Engine
from corebound.errors import ModelError, RequestError
from unit.engine.engine_fakes import (
    VOCAB_SIZE,
    FakeRunner,
    LetterTokenizer,
    continuation,
    make_request,
    make_scheduler,
)


def make_engine(num_blocks=64, block_size=4, eos=(), max_context=None, max_greedy_steps=0, **options):
    scheduler = make_scheduler(num_blocks, block_size, **options)
    runner = FakeRunner(block_size, max_greedy_steps=max_greedy_steps)
    engine = Engine(runner, scheduler, LetterTokenizer(), eos_token_ids=frozenset(eos), max_context=max_context)
    return engine, runner, scheduler


def run(engine, max_steps=2000):
    outputs, texts = {}, {}
    for _ in range(max_steps):
        if not engine.has_work:
            return outputs, texts
        for update in engine.step():
            texts[update.request_id] = texts.get(update.request_id, "") + update.new_text
            if update.output is not None:
                assert update.request_id not in outputs
                outputs[update.request_id] = update.output
    raise AssertionError("the engine does not finish")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 25), st.integers(1, 12), st.booleans()), min_size=1, max_size=7),
    st.integers(10, 30),
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(0, 9),
)
def test_every_request_gets_its_own_continuation(
    shapes, num_blocks, max_num_sequences, max_step_tokens, max_greedy_steps
):
    engine, _, scheduler = make_engine(
        num_blocks,
        max_num_sequences=max_num_sequences,
        max_step_tokens=max_step_tokens,
        max_greedy_steps=max_greedy_steps,
    )
    prompts = [[(index * 31 + position) % VOCAB_SIZE for position in range(n)] for index, (n, *_) in enumerate(shapes)]
    for index, (prompt, (_, count, is_drawn)) in enumerate(zip(prompts, shapes, strict=True)):
        engine.submit(make_request(index, prompt, max_new_tokens=count, temperature=float(is_drawn)))
    outputs, texts = run(engine)
    for index, (prompt, (_, count, _)) in enumerate(zip(prompts, shapes, strict=True)):
        assert list(outputs[index].token_ids) == continuation(prompt, count)
        assert outputs[index].finish_reason == "length"
        assert len(outputs[index].token_gaps_s) == count - 1 and min(outputs[index].token_gaps_s, default=0) >= 0
        assert texts[index] == outputs[index].text == LetterTokenizer().decode(continuation(prompt, count))
    assert scheduler.allocator.num_free == num_blocks


class Counted(FakeRunner):
    """Keeps how many greedy steps it was asked for at once, which take a while."""

    def __init__(self, block_size, **options):
        super().__init__(block_size, **options)
        self.together = []

    def run_greedily(self, inputs, num_steps):
        self.together.append(num_steps)
        time.sleep(0.01)
        return super().run_greedily(inputs, num_steps)


def test_steps_done_together_end_with_the_first_request_and_each_has_its_share_of_the_time():
    runner = Counted(4, max_greedy_steps=5)
    engine = Engine(runner, make_scheduler(64, 4), LetterTokenizer())
    engine.submit(make_request(0, [5, 6], max_new_tokens=8))
    engine.submit(make_request(1, [7], max_new_tokens=14))
    outputs, _ = run(engine)
    assert runner.together == [5, 2, 5, 1]
    gaps = outputs[1].token_gaps_s
    assert gaps[:5] == pytest.approx([sum(gaps[:5]) / 5] * 5) and sum(gaps[:5]) >= 0.01
    assert gaps[5:7] == pytest.approx([sum(gaps[5:7]) / 2] * 2) and sum(gaps) >= 0.04


@pytest.mark.parametrize("params", [{"temperature": 1.0}, {"repetition_penalty": 1.5}])
def test_a_request_that_is_sampled_has_every_step_to_itself(params):
    runner = Counted(4, max_greedy_steps=5)
    engine = Engine(runner, make_scheduler(64, 4), LetterTokenizer())
    engine.submit(make_request(0, [5, 6], max_new_tokens=8))
    engine.submit(make_request(1, [7], max_new_tokens=4, **params))
    run(engine)
    assert runner.together == [4]


def test_steps_are_done_together_as_far_as_blocks_are_free_and_nobody_gives_way_for_them():
    runner = Counted(4, max_greedy_steps=32)
    scheduler = make_scheduler(6, 4)
    engine = Engine(runner, scheduler, LetterTokenizer())
    for index in range(2):
        engine.submit(make_request(index, [index + 5] * 4, max_new_tokens=12))
    for _ in range(3):
        engine.step()
    # After the first token 11 are left, and each has three blocks, for 12 tokens: 11 more do not fit, nor 6 after 5.
    assert (runner.together, scheduler.num_preemptions, scheduler.allocator.num_free) == ([5, 3], 0, 0)
    outputs, _ = run(engine)
    for index in range(2):
        assert list(outputs[index].token_ids) == continuation([index + 5] * 4, 12)
    assert scheduler.allocator.num_free == 6


@pytest.mark.parametrize("max_greedy_steps", [0, 3, 8])
def test_what_follows_the_end_of_a_request_in_the_same_steps_is_lost(max_greedy_steps):
    tokens = continuation([5, 6], 20)
    engine, _, scheduler = make_engine(eos=[tokens[4]], max_greedy_steps=max_greedy_steps)
    engine.submit(make_request(0, [5, 6], max_new_tokens=20))
    engine.submit(make_request(1, [7, 8], max_new_tokens=20, ignore_eos=True))
    outputs, texts = run(engine)
    assert list(outputs[0].token_ids) == tokens[: tokens.index(tokens[4]) + 1]
    assert texts[0] == outputs[0].text
    assert list(outputs[1].token_ids) == continuation([7, 8], 20)
    assert scheduler.allocator.num_free == 64


@pytest.mark.parametrize("max_greedy_steps", [0, 1, 4])
def test_a_preempted_request_continues_where_it_was(max_greedy_steps):
    engine, _, scheduler = make_engine(num_blocks=6, block_size=4, max_greedy_steps=max_greedy_steps)
    for index in range(3):
        engine.submit(make_request(index, [index + 1] * 7, max_new_tokens=14))
    outputs, _ = run(engine)
    assert scheduler.num_preemptions > 0
    for index in range(3):
        assert list(outputs[index].token_ids) == continuation([index + 1] * 7, 14)


def test_a_request_can_join_while_others_run():
    engine, runner, _ = make_engine()
    engine.submit(make_request(0, [5, 6], max_new_tokens=6))
    engine.step()
    engine.submit(make_request(1, [7, 8, 9], max_new_tokens=2))
    outputs, _ = run(engine)
    assert runner.steps[:2] == [[2], [1, 3]]
    assert list(outputs[1].token_ids) == continuation([7, 8, 9], 2)


@pytest.mark.parametrize("max_greedy_steps", [0, 3])
def test_a_cancelled_request_ends_at_once_wherever_it_is_and_the_others_are_what_they_were(max_greedy_steps):
    engine, _, scheduler = make_engine(
        num_blocks=8, max_num_sequences=3, max_step_tokens=8, max_greedy_steps=max_greedy_steps
    )
    prompts = {index: [index + 1] * (5 + index) for index in range(6)}
    for index, prompt in prompts.items():
        engine.submit(make_request(index, prompt, max_new_tokens=8))
    for _ in range(3):
        engine.step()
    assert scheduler.running and scheduler.waiting
    left = {scheduler.running[0].request.id, scheduler.running[-1].request.id, scheduler.waiting[-1].request.id}
    for index in left:
        engine.cancel(index)
    engine.cancel(77)
    outputs, _ = run(engine)
    assert {index: list(output.token_ids) for index, output in outputs.items()} == {
        index: continuation(prompt, 8) for index, prompt in prompts.items() if index not in left
    }
    assert len(outputs) == 3
    assert scheduler.allocator.num_free == 8


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_a_cancelled_beam_search_releases_its_blocks_and_the_next_one_runs(num_steps):
    engine, _, scheduler = make_engine(num_blocks=8, max_step_tokens=4)
    for index in range(2):
        engine.submit(make_request(index, [1, 2, 3, 4, 5, 6], max_new_tokens=4, num_beams=2))
    for _ in range(num_steps):
        engine.step()
    engine.cancel(1)
    engine.cancel(0)
    assert not engine.has_work
    assert scheduler.allocator.num_free == 8


@pytest.mark.parametrize("max_greedy_steps", [0, 2, 7])
def test_logits_that_are_not_numbers_end_their_own_request_and_no_other(max_greedy_steps):
    tokens = continuation([5, 6], 8)

    def is_broken(seen):
        return seen[:2] == [5, 6] and len(seen) == 6

    runner = FakeRunner(4, broken=is_broken, max_greedy_steps=max_greedy_steps)
    scheduler = make_scheduler(16, 4)
    engine = Engine(runner, scheduler, LetterTokenizer())
    prompts = {0: [5, 6], 1: [7, 8, 9]}
    for index, prompt in prompts.items():
        engine.submit(make_request(index, prompt, max_new_tokens=8))
    failures, text, outputs = {}, "", {}
    while engine.has_work:
        for update in engine.step():
            text += update.new_text if update.request_id == 0 else ""
            if update.failure is not None:
                failures[update.request_id] = update.failure.message
                with pytest.raises(ModelError, match="prompt 0: the model's logits at position 5"):
                    update.raise_failure()
            if update.output is not None:
                outputs[update.request_id] = list(update.output.token_ids)
    assert failures == {
        0: "the model's logits at position 5 are not numbers (NaN), after 2 tokens of the prompt and 4 generated ones"
    }
    assert text == LetterTokenizer().decode(tokens[:4])
    assert outputs == {1: continuation([7, 8, 9], 8)}
    assert scheduler.allocator.num_free == 16


def test_a_beam_search_whose_logits_are_not_numbers_ends_alone():
    scheduler = make_scheduler(16, 4)
    engine = Engine(FakeRunner(4, broken=lambda seen: 6 in seen), scheduler, LetterTokenizer())
    engine.submit(make_request(0, [5, 6], max_new_tokens=4, num_beams=2))
    engine.submit(make_request(1, [7], max_new_tokens=2))
    failures = [update.failure for _ in range(3) for update in engine.step() if update.failure is not None]
    assert [failure.message for failure in failures] == [
        "the model's logits at position 1 are not numbers (NaN), after 2 tokens of the prompt and 0 generated ones"
    ]
    assert not engine.has_work
    assert scheduler.allocator.num_free == 16


def test_the_end_token_ends_the_text_and_is_part_of_the_output():
    tokens = continuation([5, 6], 20)
    engine, _, _ = make_engine(eos=[tokens[4]])
    engine.submit(make_request(0, [5, 6], max_new_tokens=20))
    output = run(engine)[0][0]
    assert (list(output.token_ids), output.finish_reason) == (tokens[: tokens.index(tokens[4]) + 1], "stop")


def test_the_end_token_can_be_ignored():
    tokens = continuation([5, 6], 9)
    engine, _, _ = make_engine(eos=[tokens[4]])
    engine.submit(make_request(0, [5, 6], max_new_tokens=9, ignore_eos=True))
    assert list(run(engine)[0][0].token_ids) == tokens


def test_a_stop_token_of_the_request_ends_it():
    tokens = continuation([5, 6], 9)
    engine, _, _ = make_engine()
    engine.submit(make_request(0, [5, 6], max_new_tokens=9, stop_token_ids=(tokens[2],)))
    output = run(engine)[0][0]
    assert (output.finish_reason, output.token_ids[-1]) == ("stop", tokens[2])


def test_a_stop_string_ends_the_text_before_itself():
    text = LetterTokenizer().decode(continuation([5, 6], 12))
    engine, _, _ = make_engine()
    engine.submit(make_request(0, [5, 6], max_new_tokens=12, stop=(text[3:5],)))
    outputs, texts = run(engine)
    assert outputs[0].text == texts[0] == text[: text.find(text[3:5])]
    assert outputs[0].finish_reason == "stop"


def test_the_models_context_limits_the_continuation():
    engine, _, _ = make_engine(max_context=10)
    engine.submit(make_request(0, [1] * 7, max_new_tokens=50))
    output = run(engine)[0][0]
    assert (len(output.token_ids), output.finish_reason) == (3, "length")


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "prompt 3 is empty"),
        ([1, VOCAB_SIZE], {}, r"token id 97 is not in the vocabulary, 0 to 96"),
        ([1, -1], {}, "token id -1"),
        ([1] * 30, {}, "prompt 3 has 30 tokens: the model's context is 30"),
        ([1] * 9, {"max_new_tokens": 20}, "whole cache holds 16"),
        ([1] * 4, {"max_new_tokens": 5, "num_beams": 5}, "9 tokens .* needs 24 tokens of KV cache, .* holds 16"),
    ],
)
def test_a_request_that_cannot_run_is_refused_before_it_starts(prompt, params, message):
    engine, _, _ = make_engine(num_blocks=4, max_context=30)
    with pytest.raises(RequestError, match=message):
        engine.submit(make_request(3, prompt, **params))
    assert not engine.has_work


def test_the_row_of_a_request_carries_its_seed_position_and_history():
    engine, runner, _ = make_engine()
    rows = []
    original = runner.run
    runner.run = lambda inputs, copies: rows.extend(part.row for part in inputs) or original(inputs, copies)
    engine.submit(
        make_request(0, [5, 6, 5], max_new_tokens=2, temperature=0.5, seed=77, repetition_penalty=1.2, top_k=500)
    )
    run(engine)
    assert [(row.seed, row.position, row.temperature, row.top_k) for row in rows] == [
        (77, 0, 0.5, VOCAB_SIZE),
        (77, 1, 0.5, VOCAB_SIZE),
    ]
    assert rows[0].seen.tolist() == [5, 6]
    assert rows[1].seen.tolist() == np.unique([5, 6, *continuation([5, 6, 5], 1)]).tolist()


def test_requests_without_a_seed_differ():
    engine, runner, _ = make_engine()
    seeds = []
    original = runner.run
    runner.run = lambda inputs, copies: seeds.extend(part.row.seed for part in inputs) or original(inputs, copies)
    for index in range(2):
        engine.submit(make_request(index, [5], max_new_tokens=1, temperature=1.0))
    run(engine)
    assert seeds[0] != seeds[1]
