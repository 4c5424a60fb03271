"""The scheduler: who runs, with how many tokens, and who gives way."""

import pytest

from corebound.errors import RequestError
from unit.engine.engine_fakes import make_scheduler, make_sequence


def lengths(chunks):
    return [chunk.num_tokens for chunk in chunks]


def run(scheduler, chunks):
    """Compute the chunks; every one that wants logits gets a token."""
    for chunk in chunks:
        wants_logits = chunk.wants_logits
        scheduler.complete(chunk)
        if wants_logits:
            chunk.sequence.token_ids.append(1)
            if len(chunk.sequence.token_ids) == chunk.sequence.max_length:
                scheduler.finish(chunk.sequence)


def test_prompts_of_unequal_length_start_together():
    scheduler = make_scheduler()
    for length in (3, 7, 1):
        scheduler.add(make_sequence(length))
    assert lengths(scheduler.schedule()) == [3, 7, 1]


def test_a_long_prompt_is_cut_to_the_token_budget():
    scheduler = make_scheduler(num_blocks=8, max_num_sequences=2, max_step_tokens=5)
    scheduler.add(make_sequence(12))
    seen = []
    for _ in range(3):
        chunks = scheduler.schedule()
        seen.append([(chunk.num_tokens, chunk.wants_logits) for chunk in chunks])
        run(scheduler, chunks)
    assert seen == [[(5, False)], [(5, False)], [(2, True)]]


def test_decoding_sequences_come_before_a_long_prefill():
    scheduler = make_scheduler(num_blocks=16, max_num_sequences=4, max_step_tokens=6)
    scheduler.add(make_sequence(20, index=0))
    first = scheduler.schedule()
    assert lengths(first) == [6]
    run(scheduler, first)
    scheduler.running[0].num_computed = 19  # almost through its prompt
    scheduler.add(make_sequence(30, index=1))
    assert lengths(scheduler.schedule()) == [1, 5]


def test_a_request_waits_until_its_blocks_are_free():
    scheduler = make_scheduler(num_blocks=3, block_size=4)
    first, second = make_sequence(8, max_new_tokens=1), make_sequence(8, max_new_tokens=1)
    scheduler.add(first)
    scheduler.add(second)
    chunks = scheduler.schedule()
    assert [chunk.sequence for chunk in chunks] == [first]
    run(scheduler, chunks)
    assert [chunk.sequence for chunk in scheduler.schedule()] == [second]


def test_the_youngest_gives_way_and_keeps_its_tokens():
    scheduler = make_scheduler(num_blocks=4, block_size=4)
    old, young = make_sequence(8, max_new_tokens=8), make_sequence(7, max_new_tokens=8)
    scheduler.add(old)
    scheduler.add(young)
    run(scheduler, scheduler.schedule())
    chunks = scheduler.schedule()
    assert [chunk.sequence for chunk in chunks] == [old]
    assert scheduler.num_preemptions == 1
    assert (young.num_computed, young.blocks, len(young.token_ids)) == (0, [], 8)
    assert list(scheduler.waiting) == [young]


def test_a_request_that_can_never_fit_says_the_size_it_needs():
    scheduler = make_scheduler(num_blocks=4, block_size=4)
    with pytest.raises(
        RequestError, match=r"21 tokens .* needs 20 tokens of KV cache, the whole cache holds 16"
    ) as caught:
        scheduler.add(make_sequence(17, max_new_tokens=4))
    assert "1.25 times" in str(caught.value.hint)
    scheduler.add(make_sequence(13, max_new_tokens=4))


def test_everything_is_released_at_the_end():
    scheduler = make_scheduler(num_blocks=5, block_size=2)
    for index in range(6):
        scheduler.add(make_sequence(1 + index, max_new_tokens=3, index=index))
    num_steps = 0
    while scheduler.has_work:
        run(scheduler, scheduler.schedule())
        num_steps += 1
        assert num_steps < 100
    assert scheduler.allocator.num_free == 5


def test_no_more_sequences_run_than_asked_for():
    scheduler = make_scheduler(num_blocks=8, max_num_sequences=2)
    for index in range(3):
        scheduler.add(make_sequence(1, index=index))
    assert len(scheduler.schedule()) == 2


def test_blocks_that_one_has_to_spare_are_no_room_for_another():
    scheduler = make_scheduler(num_blocks=5, block_size=4)
    spare, full = make_sequence(3, max_new_tokens=8, index=0), make_sequence(7, max_new_tokens=8, index=1)
    for sequence in (spare, full):
        scheduler.add(sequence)
    run(scheduler, scheduler.schedule())
    chunks = scheduler.schedule()
    assert scheduler.reserve(chunks[:1], 8) == 8  # 11 tokens: three blocks for one that has 4
    assert scheduler.allocator.num_free == 0
    # The other's second step is at the edge of a block, and none is free.
    assert scheduler.reserve(chunks, 2) == 1
