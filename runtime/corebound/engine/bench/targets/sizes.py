"""How many bytes a checkpoint has at a dtype, the cache of a prompt, and the caches of some cores."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from corebound.engine.kv_cache import BLOCK_SIZE, block_bytes, blocks_for
from corebound.models.architecture import Architecture
from corebound.models.storage import rank_storage
from corebound.quantization import parse_scheme
from corebound.quantization.scheme import is_scheme
from corebound.sharding import shard_plan
from corebound.topology import Topology

_ELEMENT_BYTES = 2


def checkpoint_bytes(architecture: Architecture, dtypes: Sequence[str]) -> dict[str, int]:
    """Return the bytes of all weights at each dtype, each stored as one rank stores it, scales included."""
    plan = shard_plan(architecture, 1)
    schemes = {dtype: parse_scheme(dtype) if is_scheme(dtype) else None for dtype in dtypes}
    return {dtype: rank_storage(architecture, plan, 0, scheme).num_bytes for dtype, scheme in schemes.items()}


def prompt_cache_bytes(architecture: Architecture, num_tokens: int) -> int:
    """Return the bytes of the whole blocks that one sequence fills."""
    one = block_bytes(
        num_layers=architecture.num_layers,
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        element_bytes=_ELEMENT_BYTES,
        block_size=BLOCK_SIZE,
    )
    return blocks_for(num_tokens, BLOCK_SIZE) * one


def last_level_bytes(topology: Topology, cpus: Collection[int]) -> int:
    """Return the size of the last-level caches that hold some CPUs, each once."""
    level = max((cache.level for cache in topology.caches), default=0)
    return sum(
        cache.size_bytes
        for cache in topology.caches
        if cache.level == level and cache.kind != "instruction" and not set(cpus).isdisjoint(cache.cpus)
    )
