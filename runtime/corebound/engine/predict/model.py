"""First token, next token and memory of a model on hosts of given ceilings: pure arithmetic."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from corebound.engine.kv_cache import BLOCK_SIZE, block_bytes, blocks_for
from corebound.engine.predict.ceilings import Ceilings
from corebound.models.architecture import Architecture
from corebound.models.storage import RankStorage, StoredMatrix, rank_storage
from corebound.quantization.scheme import is_scheme, parse_scheme
from corebound.sharding import ShardPlan, shard_plan

# As in LLM: a longer prompt goes in steps of so many tokens.
STEP_TOKENS = 512
_ELEMENT_BYTES = 2
# What a step costs rank 0 in Python, scheduling, message and sampling: with llama-tiny on a Xeon with AMX at 2.6 GHz,
# the time between tokens less that of the native call, p10 of 200 on a busy machine. And what each further word of the
# vocabulary adds to sampling, between 4096 and 250880 words there.
PYTHON_STEP_S = 450e-6
SAMPLED_WORD_S = 0.5e-9
# Resident memory of a rank beside its weights, cache and buffers, torch imported: llama-tiny with torch 2.13.0, x86-64.
PROCESS_BYTES = 240 << 20
# Beside the sums of the layers: the step's message and the candidates of every rank.
_SMALL_SUMS = 2
# Our all-reduce against the floor that is measured: the bound that the project holds itself to at 8 KiB.
_SUM_OVER_FLOOR = 1.5
# Assumed between hosts where the ceilings have no figures: TCP over Ethernet of 10 Gbit/s.
ASSUMED_NETWORK_LATENCY_US, ASSUMED_NETWORK_GB_PER_S = 30.0, 1.1


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is asked of the model: the prompt's tokens, the context at which a next token is timed, and the batch."""

    prompt_tokens: int = 512
    context: int = 512
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a step by what they go to."""

    memory_s: float = 0.0
    arithmetic_s: float = 0.0
    all_reduce_s: float = 0.0
    overhead_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Return the time of the step."""
        return self.memory_s + self.arithmetic_s + self.all_reduce_s + self.overhead_s

    @property
    def bound_by(self) -> str:
        """Return what most of the time goes to."""
        names = {
            "memory bandwidth": self.memory_s,
            "arithmetic": self.arithmetic_s,
            "all-reduce": self.all_reduce_s,
            "overhead": self.overhead_s,
        }
        return max(names, key=lambda name: names[name])

    def __add__(self, other: Times) -> Times:
        return Times(
            **{item.name: getattr(self, item.name) + getattr(other, item.name) for item in dataclasses.fields(self)}
        )


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
    model = _Model(architecture, plan, tuple(stored), ceilings, ranks_per_host, num_hosts)
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
        next_token=model.step([work.context - 1] * work.batch, 1, work.batch),
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


@dataclass(frozen=True)
class _Model:
    architecture: Architecture
    plan: ShardPlan
    stored: tuple[RankStorage, ...]
    ceilings: Ceilings
    ranks_per_host: int
    num_hosts: int

    def first_token(self, prompt_tokens: int) -> Times:
        """Return the time of a prompt: steps of at most STEP_TOKENS, of which the last has logits."""
        whole, done = Times(), 0
        while done < prompt_tokens:
            tokens = min(STEP_TOKENS, prompt_tokens - done)
            done += tokens
            whole += self.step([done - tokens], tokens, 1 if done == prompt_tokens else 0)
        return whole

    def step(self, before: list[int], tokens: int, num_logits: int) -> Times:
        """Return the time of a step of sequences with `before` cached tokens each and `tokens` new ones."""
        slowest = max(
            (self._of_rank(rank, before, tokens, num_logits) for rank in range(self.plan.num_ranks)),
            key=lambda times: times.total_s,
        )
        rows = tokens * len(before)
        return slowest + Times(all_reduce_s=self._all_reduces(rows, num_logits), overhead_s=PYTHON_STEP_S)

    def _of_rank(self, rank: int, before: list[int], tokens: int, num_logits: int) -> Times:
        """Return what a rank does between all-reduces. Ranks of a host work at once, on equal shares of its cores."""
        sizes, share = self.architecture, self.plan.shares[rank]
        host = rank // self.ranks_per_host * self.ranks_per_host
        set_bytes = sum(self.stored[other].bytes_per_token for other in range(host, host + self.ranks_per_host))
        rows, ranks = tokens * len(before), self.ranks_per_host
        memory_s = total_s = 0.0
        last = f"layers.{sizes.num_layers - 1}."
        for matrix in self.stored[rank].matrices:
            is_head = not matrix.field.startswith("layers.")
            # After the attention of the last layer only the rows whose logits are wanted go on.
            met = num_logits if is_head or (matrix.field.startswith(last) and "qkv" not in matrix.field) else rows
            if met:
                met, used = self._spread(matrix, met)
                product_s = self.ceilings.product_seconds(matrix.form.kind, matrix.num_weights, met, set_bytes)
                time_s = used * ranks * product_s
                total_s += time_s
                memory_s += min(time_s, used * ranks * matrix.num_bytes / self.ceilings.read_gb_per_s * 1e-9)
        position_bytes = 2 * len(share.kv_heads) * sizes.head_dim * _ELEMENT_BYTES
        windows = [sizes.window(layer) for layer in range(sizes.num_layers)]
        seen = [min(count, window - 1) if window else count for window in windows for count in before]
        cached_bytes = position_bytes * sum(count + tokens for count in seen)
        memory_s += (cache_s := ranks * cached_bytes / self.ceilings.read_gb_per_s * 1e-9)
        total_s += cache_s
        if tokens > 1:
            width = len(share.query_heads) * sizes.head_dim
            flop = sum(attention_flop(width, count, tokens, window) for window in windows for count in before)
            total_s += ranks * flop / self.ceilings.attention_gflop_per_s * 1e-9
        overhead_s = sizes.num_layers * self.ceilings.layer_us * 1e-6 + num_logits * len(share.vocab) * SAMPLED_WORD_S
        return Times(memory_s=memory_s, arithmetic_s=total_s - memory_s, overhead_s=overhead_s)

    def _spread(self, matrix: StoredMatrix, rows: int) -> tuple[int, float]:
        """Return how many of the rows meet a matrix if any does, and how likely one does: of experts, a part of them.

        Rows are taken to choose their experts evenly and without regard to each other.
        """
        if not matrix.of_expert:
            return rows, 1.0
        part = self.architecture.num_chosen_experts / self.architecture.num_experts
        used = 1.0 - (1.0 - part) ** rows
        return max(1, round(rows * part / used)), used

    def _all_reduces(self, rows: int, num_logits: int) -> float:
        if self.plan.num_ranks == 1:
            return 0.0
        width = self.architecture.hidden_size * _ELEMENT_BYTES
        # The last layer's are of the rows whose logits are wanted.
        of_layer = 1 if self.architecture.parallel_residual else 2
        full = of_layer * (self.architecture.num_layers - 1) + 1  # and the embedding's
        sums_s = full * self._sum_s(rows * width) + (of_layer * self._sum_s(num_logits * width) if num_logits else 0.0)
        return sums_s + _SMALL_SUMS * self._sum_s(4096)

    def _sum_s(self, num_bytes: int) -> float:
        time_s = _SUM_OVER_FLOOR * self.ceilings.sum_seconds(self.ranks_per_host, num_bytes)
        if self.num_hosts > 1:
            latency_us = self.ceilings.network_latency_us or ASSUMED_NETWORK_LATENCY_US
            gb_per_s = self.ceilings.network_gb_per_s or ASSUMED_NETWORK_GB_PER_S
            stages = (self.num_hosts - 1).bit_length()
            between = 2 * num_bytes * (self.num_hosts - 1) / self.num_hosts
            time_s += stages * latency_us * 1e-6 + between / gb_per_s * 1e-9
        return time_s


def attention_flop(query_width: int, before: int, tokens: int, window: int = 0) -> int:
    """Return the operations of causal attention of a layer: `tokens` queries, after `before` keys.

    With a `window` a query sees so many keys at most.
    """
    whole = min(tokens, max(0, window - before)) if window else tokens  # queries that see every key before them
    return 4 * query_width * (before * whole + whole * (whole + 1) // 2 + (tokens - whole) * window)
