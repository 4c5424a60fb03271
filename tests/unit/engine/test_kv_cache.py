"""Blocks of the KV cache: never handed out twice, never lost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from corebound.engine.bench.targets.resident_rank import resident_bytes
from corebound.engine.kv_cache import (
    GIB,
    BlockAllocator,
    BlockCopy,
    allocate_kv_cache,
    block_bytes,
    blocks_for,
    copy_blocks,
    num_blocks_for_memory,
)
from corebound.errors import HostError

NUM_BLOCKS = 6


class AllocatorMachine(RuleBasedStateMachine):
    """Any order of allocate, share and release, against a plain list of who holds what."""

    holds = Bundle("holds")

    def __init__(self):
        super().__init__()
        self.allocator = BlockAllocator(NUM_BLOCKS)
        self.held = []

    @precondition(lambda self: self.allocator.num_free > 0)
    @rule(target=holds)
    def allocate(self):
        block = self.allocator.allocate()
        assert block not in self.held
        self.held.append(block)
        return block

    @rule(block=holds)
    def share(self, block):
        if block in self.held:
            self.allocator.share(block)
            self.held.append(block)

    @rule(block=holds)
    def release(self, block):
        if block in self.held:
            self.allocator.release(block)
            self.held.remove(block)
        else:
            with pytest.raises(AssertionError):
                self.allocator.release(block)

    @invariant()
    def counts_agree(self):
        assert self.allocator.num_free == NUM_BLOCKS - len(set(self.held))
        for block in range(NUM_BLOCKS):
            assert self.allocator.num_holders(block) == self.held.count(block)


TestAllocator = AllocatorMachine.TestCase


@given(st.integers(0, 10_000), st.integers(1, 512))
def test_blocks_are_as_few_as_possible(num_tokens, block_size):
    num_blocks = blocks_for(num_tokens, block_size)
    assert num_blocks * block_size >= num_tokens > (num_blocks - 1) * block_size


def test_a_block_counts_keys_and_values_of_all_layers():
    shape = {"num_layers": 3, "num_kv_heads": 2, "head_dim": 8, "block_size": 16}
    cache = allocate_kv_cache(num_blocks=5, dtype=torch.bfloat16, **shape)
    total = sum(keys.nbytes + values.nbytes for keys, values in cache)
    assert block_bytes(element_bytes=2, **shape) * 5 == total
    assert cache[0][0].shape == (5, 2, 16, 8)


def test_the_blocks_of_all_layers_lie_next_to_each_other():
    shape = {"num_layers": 3, "num_kv_heads": 2, "head_dim": 8, "block_size": 16}
    cache = allocate_kv_cache(num_blocks=5, dtype=torch.bfloat16, **shape)
    parts = [tensor[:2] for pair in cache for tensor in pair]  # of the first two blocks
    starts = [part.data_ptr() for part in parts]
    ends = [part[1].data_ptr() + part[1].nbytes for part in parts]
    assert all(part[0].is_contiguous() for part in parts)
    assert max(ends) - min(starts) == 2 * block_bytes(element_bytes=2, **shape)


def test_a_short_prompt_makes_little_more_resident_than_its_blocks():
    shape = {"num_layers": 40, "num_kv_heads": 1, "head_dim": 64, "block_size": 32}
    cache = allocate_kv_cache(num_blocks=2000, dtype=torch.bfloat16, **shape)
    before = resident_bytes()
    for keys, values in cache:
        keys[:4], values[:4] = 1.0, 1.0
    huge_page = 2 << 20
    assert resident_bytes() - before < 4 * block_bytes(element_bytes=2, **shape) + 3 * huge_page


def size(**changes):
    values = {
        "bytes_per_block": GIB // 4,
        "kv_cache_gib": None,
        "available_bytes": 16 * GIB,
        "local_size": 2,
        "max_useful_tokens": 10_000,
        "block_size": 32,
    }
    return num_blocks_for_memory(**(values | changes))


def test_ranks_of_a_machine_share_half_of_what_is_available():
    assert size() == 16
    assert size(local_size=4) == 8


def test_no_more_is_planned_than_can_be_useful():
    assert size(max_useful_tokens=100) == 4


def test_a_size_asked_for_is_taken_per_rank():
    assert size(kv_cache_gib=1.5) == 6


@pytest.mark.parametrize("changes", [{"kv_cache_gib": 0.1}, {"available_bytes": GIB // 8}])
def test_a_cache_without_room_for_a_block_says_what_one_needs(changes):
    with pytest.raises(HostError, match=r"one block of 32 tokens needs 0\.250 GiB"):
        size(**changes)


# 256 TiB are more than a process can address, however freely the system gives out what it has not.
@pytest.mark.parametrize(
    ("num_blocks", "said"),
    [(1 << 30, r"262144\.0 GiB .*: Cannot allocate memory"), (1 << 46, "more than there are addr")],
)
def test_a_cache_that_no_machine_has_is_an_error_with_its_size_and_the_flag(num_blocks, said):
    with pytest.raises(HostError, match=f"cannot reserve .*{said}") as caught:
        allocate_kv_cache(
            num_blocks=num_blocks, num_layers=1, num_kv_heads=8, head_dim=256, block_size=32, dtype=torch.float16
        )
    assert "--kv-cache-gib" in caught.value.render()


def test_blocks_of_a_cache_made_in_inference_mode_can_be_copied_outside_it():
    with torch.inference_mode():
        cache = allocate_kv_cache(
            num_blocks=2, num_layers=1, num_kv_heads=1, head_dim=2, block_size=2, dtype=torch.float32
        )
        cache[0][0][0] = 7.0
    copy_blocks(cache, [BlockCopy(0, 1)])
    assert torch.equal(cache[0][0][1], torch.full((1, 2, 2), 7.0))


def test_copied_blocks_hold_the_source_in_every_layer():
    cache = allocate_kv_cache(num_blocks=4, num_layers=2, num_kv_heads=1, head_dim=2, block_size=2, dtype=torch.float32)
    for keys, values in cache:
        keys.copy_(torch.arange(16.0).reshape(keys.shape))
        values.copy_(-keys)
    copy_blocks(cache, [BlockCopy(0, 2), BlockCopy(0, 3)])
    for keys, values in cache:
        assert torch.equal(keys[2], keys[0]) and torch.equal(keys[3], keys[0])
        assert torch.equal(values[3], values[0])
        assert not torch.equal(keys[1], keys[0])
