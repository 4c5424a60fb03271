"""Blocks of the KV cache: who holds which, how many there are, and the tensors behind them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from corebound.errors import HostError

if TYPE_CHECKING:
    import torch

# 32 tokens of a bf16 head of 64 are one 4 KiB page: a block of one head is contiguous and never shares its page.
BLOCK_SIZE = 32
GIB = 1 << 30
# The share of free memory that the cache may take when no size was asked for; the rest is for activations and others.
DEFAULT_MEMORY_FRACTION = 0.5

KVCache = list[tuple["torch.Tensor", "torch.Tensor"]]


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold `num_tokens`."""
    return -(-num_tokens // block_size)


class BlockCopy(NamedTuple):
    """Copy the whole of one block over another, on every rank, before a step."""

    source: int
    target: int


class BlockAllocator:
    """Hands out blocks by number and counts their holders; a block is free again when the last holder releases it.

    Only rank 0 has one: the other ranks are told the block numbers with each step.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Popped from the end, so low numbers go first and the pages touched stay few.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_holders = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def num_holders(self, block: int) -> int:
        """Return how many sequences hold `block`."""
        return self._num_holders[block]

    def allocate(self) -> int:
        """Return a free block, now held once. The caller has checked `num_free`."""
        assert self._free, "allocate() without a free block"
        block = self._free.pop()
        assert self._num_holders[block] == 0
        self._num_holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a holder to a block that is in use."""
        assert self._num_holders[block] > 0, f"share() of free block {block}"
        self._num_holders[block] += 1

    def release(self, block: int) -> None:
        """Remove a holder of `block`."""
        assert self._num_holders[block] > 0, f"release() of free block {block}"
        self._num_holders[block] -= 1
        if self._num_holders[block] == 0:
            self._free.append(block)


def block_bytes(*, num_layers: int, num_kv_heads: int, head_dim: int, element_bytes: int, block_size: int) -> int:
    """Return the bytes of one block over all layers on one rank, keys and values together."""
    return 2 * num_layers * num_kv_heads * head_dim * element_bytes * block_size


def num_blocks_for_memory(
    *,
    bytes_per_block: int,
    kv_cache_gib: float | None,
    available_bytes: int,
    local_size: int,
    max_useful_tokens: int,
    block_size: int,
) -> int:
    """Return how many blocks this rank can hold.

    `kv_cache_gib` is per rank; without it, each of the machine's `local_size` ranks takes an equal part of half the
    available memory, and no more than `max_useful_tokens`. Pages are taken from the system only when first written.

    Raises: HostError when not even one block fits.
    """
    if kv_cache_gib is not None:
        num_blocks = int(kv_cache_gib * GIB) // bytes_per_block
        found = f"kv_cache_gib is {kv_cache_gib}"
    else:
        share_bytes = int(available_bytes * DEFAULT_MEMORY_FRACTION / local_size)
        num_blocks = min(share_bytes // bytes_per_block, blocks_for(max_useful_tokens, block_size))
        found = f"{available_bytes / GIB:.2f} GiB are available to {local_size} ranks"
    if num_blocks < 1:
        raise HostError(
            f"KV cache: one block of {block_size} tokens needs {bytes_per_block / GIB:.3f} GiB on each rank, {found}",
            hint="use more ranks, a smaller model, or free memory",
        )
    return num_blocks


def allocate_kv_cache(
    *, num_blocks: int, num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> KVCache:
    """Return the key and value cache of every layer, each [num_blocks, num_kv_heads, block_size, head_dim].

    Strides: a block of a layer is contiguous; the same block of all other layers lies between it and the next.

    The memory is not written here, so that its pages land on the rank's own node when the rank first uses them. They
    are huge where they may be: blocks of one head lie apart, and each small page would cost an entry of the TLB. All
    layers share them: with a part of the memory for each, a short prompt would begin two huge pages a layer.

    Raises: HostError when the system does not give out so much, used or not.
    """
    from corebound.sharding.arena import allocate

    shape = (num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim)
    try:
        blocks = allocate({"blocks": shape}, dtype)["blocks"]
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "more than there are addresses"
        raise HostError(
            f"KV cache: cannot reserve {math.prod(shape) * dtype.itemsize / GIB:.1f} GiB on this rank: {why}",
            hint="ask for less with --kv-cache-gib (kv_cache_gib of LLM)",
        ) from error
    return [(layer[:, 0], layer[:, 1]) for layer in blocks.unbind(1)]


def copy_blocks(cache: KVCache, copies: list[BlockCopy]) -> None:
    """Carry out `copies` in every layer. A block may be the source of several, but no target is a source."""
    import torch

    if not copies:
        return
    sources = torch.tensor([copy.source for copy in copies])
    targets = torch.tensor([copy.target for copy in copies])
    with torch.inference_mode():  # a cache that was made in that mode can be changed in no other
        for keys, values in cache:
            keys[targets] = keys[sources]
            values[targets] = values[sources]
