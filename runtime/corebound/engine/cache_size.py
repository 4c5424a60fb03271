"""How many blocks of the KV cache the ranks of a model make."""

from __future__ import annotations

import math
from typing import Protocol

import torch

from corebound.comm.base import Collectives
from corebound.engine import kv_cache as kv
from corebound.engine.place import local_size
from corebound.logs import get_logger
from corebound.topology import read_topology

_LOGGER = get_logger(__name__)


class CachedModel(Protocol):
    """What the size of a cache follows from."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype


def cache_block_bytes(model: CachedModel) -> int:
    """Return the bytes of one block of all layers on this rank."""
    return kv.block_bytes(
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        element_bytes=model.dtype.itemsize,
        block_size=kv.BLOCK_SIZE,
    )


def common_num_blocks(
    model: CachedModel, collectives: Collectives, *, kv_cache_gib: float | None, max_useful_tokens: int
) -> int:
    """Return the number of blocks that every rank can hold: all address the same ones. All ranks call it.

    Raises: HostError when not even one sequence fits.
    """
    # After every rank has its weights, so that the memory they take is not counted as available.
    # How long loading takes differs: the slowest disk decides, and the death of a rank still ends the wait.
    collectives.barrier(math.inf)
    num_blocks = kv.num_blocks_for_memory(
        bytes_per_block=cache_block_bytes(model),
        kv_cache_gib=kv_cache_gib,
        available_bytes=read_topology().memory.available_bytes,
        local_size=local_size(),
        max_useful_tokens=max_useful_tokens,
        block_size=kv.BLOCK_SIZE,
    )
    counts = collectives.all_gather(torch.tensor([num_blocks], dtype=torch.int64), math.inf)
    num_blocks = int(counts.min())
    if collectives.rank == 0:
        _LOGGER.info("KV cache: %d tokens in %d blocks", num_blocks * kv.BLOCK_SIZE, num_blocks)
    return num_blocks


def allocate_cache(model: CachedModel, num_blocks: int) -> kv.KVCache:
    """Return the tensors of so many blocks; their pages are taken as they are used."""
    return kv.allocate_kv_cache(
        num_blocks=num_blocks,
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        block_size=kv.BLOCK_SIZE,
        dtype=model.dtype,
    )
