"""A step on the wire: what goes in comes out, and the model's view of it is right."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.engine.kv_cache import BlockCopy
from corebound.engine.step import SamplingRow, StepInput, decode_step, encode_step
from corebound.engine.together import steps_together

BLOCK_SIZE = 4
float32s = st.floats(0, 1000, width=32)


@st.composite
def inputs(draw):
    count = draw(st.integers(1, 9))
    first = draw(st.integers(0, 20))
    num_blocks = -(-(first + count) // BLOCK_SIZE)
    row = None
    if draw(st.booleans()):
        row = SamplingRow(
            temperature=draw(float32s),
            top_k=draw(st.integers(0, 100)),
            top_p=draw(float32s),
            repetition_penalty=draw(float32s),
            seed=draw(st.integers(0, 2**64 - 1)),
            position=draw(st.integers(0, 2**31 - 1)),
            num_best=draw(st.integers(0, 8)),
            seen=np.array(draw(st.lists(st.integers(0, 300_000), max_size=5)), np.int32),
        )
    tokens = draw(st.lists(st.integers(0, 300_000), min_size=count, max_size=count))
    blocks = draw(st.lists(st.integers(0, 1000), min_size=num_blocks, max_size=num_blocks))
    return StepInput(tokens, first, blocks, row)


def as_plain(row):
    return (*(getattr(row, name) for name in vars(row) if name != "seen"), row.seen.tolist())


@given(
    st.lists(inputs(), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99))),
    st.integers(0, 99),
)
def test_a_step_survives_the_wire(parts, copies, num_greedy_steps):
    step = decode_step(encode_step(parts, BLOCK_SIZE, copies, num_greedy_steps))
    assert step.num_greedy_steps == num_greedy_steps
    batch = step.batch
    assert batch.token_ids.tolist() == [token for part in parts for token in part.token_ids]
    starts = batch.query_starts.tolist()
    assert [stop - start for start, stop in itertools.pairwise(starts)] == [len(p.token_ids) for p in parts]
    assert batch.context_lengths.tolist() == [part.first_position + len(part.token_ids) for part in parts]
    expected = [
        (part.first_position + offset, part.blocks[(part.first_position + offset) // BLOCK_SIZE])
        for part in parts
        for offset in range(len(part.token_ids))
    ]
    assert batch.positions.tolist() == [position for position, _ in expected]
    assert batch.slots.tolist() == [block * BLOCK_SIZE + position % BLOCK_SIZE for position, block in expected]
    for index, part in enumerate(parts):
        assert batch.block_tables[index, : len(part.blocks)].tolist() == list(part.blocks)
    with_row = [index for index, part in enumerate(parts) if part.row is not None]
    assert batch.logits_rows.tolist() == [starts[index + 1] - 1 for index in with_row]
    assert [as_plain(row) for row in step.rows] == [as_plain(parts[index].row) for index in with_row]
    assert step.copies == [BlockCopy(*copy) for copy in copies]


@pytest.mark.parametrize(("step_s", "expected"), [(math.inf, 1), (1.0, 1), (0.004, 2), (0.001, 10), (1e-6, 32)])
def test_short_steps_are_done_together(step_s, expected):
    assert steps_together(step_s) == expected


def test_the_tensors_have_the_types_of_the_contract():
    batch = decode_step(encode_step([StepInput([1, 2], 0, [3], SamplingRow())], BLOCK_SIZE)).batch
    for name in ("token_ids", "positions", "slots", "logits_rows"):
        assert str(getattr(batch, name).dtype) == "torch.int64"
    for name in ("block_tables", "query_starts", "context_lengths"):
        assert str(getattr(batch, name).dtype) == "torch.int32"
