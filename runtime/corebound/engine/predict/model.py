"""First token, next token and memory of a model on hosts of given ceilings: pure arithmetic."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from corebound.engine.kv_cache import BLOCK_SIZE, block_bytes, blocks_for
from corebound.engine.predict.ceilings import Ceilings
from corebound.engine.predict.times import STEP_TOKENS, StepTimes, Times
from corebound.models.architecture import Architecture
from corebound.models.storage import rank_storage
from corebound.quantization.scheme import is_scheme, parse_scheme
from corebound.sharding import ShardPlan, shard_plan

_ELEMENT_BYTES = 2
# Resident memory of a rank beside its weights, cache and buffers, torch imported: llama-tiny with torch 2.13.0, x86-64.
PROCESS_BYTES = 240 << 20


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is asked of the model: the prompt's tokens, the context at which a next token is timed, and the batch."""

    prompt_tokens: int = 512
    context: int = 512
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one way to run the model takes. Memory is of the rank that needs most."""

    dtype: str
    num_ranks: int
    num_hosts: int
    first_token: Times
    next_token: Times
    weight_bytes: int
    cache_bytes: int
    rank_bytes: int
    host_bytes: int
    available_bytes: int

    @property
    def fits(self) -> bool:
        """Return whether the ranks of a host fit the memory that it has available."""
        return self.host_bytes <= self.available_bytes

    @property
    def bound_by(self) -> str:
        """Return the limit of the next token, or that there is no room."""
        return self.next_token.bound_by if self.fits else "capacity"

    def to_json(self) -> dict[str, Any]:
        """Return the row that --json prints."""
        return {
            "dtype": self.dtype,
            "num_ranks": self.num_ranks,
            "num_hosts": self.num_hosts,
            "first_token_ms": round(self.first_token.total_s * 1e3, 3),
            "next_token_ms": round(self.next_token.total_s * 1e3, 3),
            "first_token_parts_ms": _parts(self.first_token),
            "next_token_parts_ms": _parts(self.next_token),
            "weight_bytes_per_rank": self.weight_bytes,
            "cache_bytes_per_rank": self.cache_bytes,
            "memory_bytes_per_rank": self.rank_bytes,
            "memory_bytes_per_host": self.host_bytes,
            "available_bytes_per_host": self.available_bytes,
            "fits": self.fits,
            "first_token_bound_by": self.first_token.bound_by,
            "bound_by": self.bound_by,
        }


def _parts(times: Times) -> dict[str, float]:
    return {name.removesuffix("_s"): round(value * 1e3, 4) for name, value in dataclasses.asdict(times).items()}


def predict(
    architecture: Architecture, dtype: str, ranks_per_host: int, num_hosts: int, ceilings: Ceilings, work: Workload
) -> Prediction:
    """Return what a split over `ranks_per_host` on each of `num_hosts` equal hosts takes.

    `dtype` is bfloat16 or a quantization scheme.

    Raises: ShardingError for a number of ranks that does not work; ConfigError for a scheme that is none.
    """
    plan = shard_plan(architecture, ranks_per_host * num_hosts)
    scheme = parse_scheme(dtype) if is_scheme(dtype) else None
    stored = [rank_storage(architecture, plan, rank, scheme) for rank in range(plan.num_ranks)]
    caches = [_cache_bytes(architecture, plan, rank, work) for rank in range(plan.num_ranks)]
    hosts = [range(first, first + ranks_per_host) for first in range(0, plan.num_ranks, ranks_per_host)]
    model = StepTimes(architecture, plan, tuple(stored), ceilings, ranks_per_host, num_hosts)
    needs = [
        stored[rank].num_bytes
        + caches[rank]
        + _buffer_bytes(architecture, plan, rank, work, scheme is not None)
        + PROCESS_BYTES
        for rank in range(plan.num_ranks)
    ]
    heaviest = max(range(plan.num_ranks), key=lambda rank: needs[rank])
    return Prediction(
        dtype=dtype,
        num_ranks=plan.num_ranks,
        num_hosts=num_hosts,
        first_token=model.first_token(work.prompt_tokens),
        next_token=model.next_token([work.context - 1] * work.batch),
        weight_bytes=stored[heaviest].num_bytes,
        cache_bytes=caches[heaviest],
        rank_bytes=needs[heaviest],
        host_bytes=max(sum(needs[rank] for rank in host) for host in hosts),
        available_bytes=ceilings.memory_bytes,
    )


def _cache_bytes(architecture: Architecture, plan: ShardPlan, rank: int, work: Workload) -> int:
    """Return the bytes of the cache of whole blocks that the batch fills."""
    one = block_bytes(
        num_layers=architecture.num_layers,
        num_kv_heads=len(plan.shares[rank].kv_heads),
        head_dim=architecture.head_dim,
        element_bytes=_ELEMENT_BYTES,
        block_size=BLOCK_SIZE,
    )
    return work.batch * blocks_for(max(work.context, work.prompt_tokens), BLOCK_SIZE) * one


def _buffer_bytes(architecture: Architecture, plan: ShardPlan, rank: int, work: Workload, quantised: bool) -> int:
    """Return the bytes of what a step of many tokens keeps between its products, as Walker::make_room has it."""
    share = plan.shares[rank]
    rows = max(min(work.prompt_tokens, STEP_TOKENS), work.batch)
    attended = len(share.query_heads) * architecture.head_dim
    projected = attended + 2 * len(share.kv_heads) * architecture.head_dim
    has_one_mlp = not all(map(architecture.has_experts, range(architecture.num_layers)))
    inner = len(share.intermediate) if has_one_mlp else 0
    mixed = max(len(share.expert_intermediate), len(share.shared_intermediate))
    mixed_rows = _mixed_rows(architecture, rows)
    elements = rows * (3 * architecture.hidden_size + projected + 2 * attended + inner)
    elements += mixed_rows * (2 * architecture.hidden_size + mixed)
    widest = max(architecture.hidden_size, attended, inner, mixed)
    elements += max(rows, mixed_rows) * widest  # tiles, or rows in whole numbers of two bytes
    if quantised and mixed_rows:
        elements += max(rows, mixed_rows) * widest  # both: an expert with few rows takes no tiles
    return _ELEMENT_BYTES * elements


def _mixed_rows(architecture: Architecture, rows: int) -> int:
    """Return the rows that the experts of so many compute, each expert's in whole tiles."""
    if not architecture.num_experts:
        return 0
    each = architecture.num_chosen_experts + (architecture.shared_expert_size > 0)
    return rows * each + 15 * min(rows * each, architecture.num_experts + 1)
