"""How long a step of a model takes on hosts of given ceilings, and what of it goes where: pure arithmetic."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from corebound.engine.predict.ceilings import Ceilings
from corebound.engine.together import steps_together
from corebound.models.architecture import Architecture
from corebound.models.storage import RankStorage, StoredMatrix
from corebound.sharding import ShardPlan

# As in LLM: a longer prompt goes in steps of so many tokens.
STEP_TOKENS = 512
_ELEMENT_BYTES = 2
# What a step costs rank 0 in Python, scheduling, message and choice of the token: with llama-1.1b and bloom-560m on a
# Xeon with AMX at 2.6 GHz, the median time between native calls, whose weights have left nothing of Python in a cache.
# A model that the caches hold takes less, other processors more or less.
PYTHON_STEP_S = 260e-6
# Beside the sums of the layers: the step's message and the candidates of every rank.
_SMALL_SUMS = 2
# Our all-reduce against the floor that is measured: the bound that the project holds itself to at 8 KiB.
_SUM_OVER_FLOOR = 1.5
# Matrices of which each rank has some inputs, so that a sum over the ranks follows.
_SUMMED = ("attention_out_weight", "mlp_out_weight")
_EXPERT = re.compile(r"\.experts\.\d+\.")
# Assumed between hosts where the ceilings have no figures: TCP over Ethernet of 10 Gbit/s.
ASSUMED_NETWORK_LATENCY_US, ASSUMED_NETWORK_GB_PER_S = 30.0, 1.1


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


@dataclass(frozen=True)
class StepTimes:
    """The times of steps of one model, split over some ranks of hosts with these ceilings."""

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

    def next_token(self, before: list[int]) -> Times:
        """Return the time of a step of one token of each sequence, of greedy requests.

        Short ones are done together, and share Python's time, as by NativeDecoder.greedy_steps.
        """
        alone = self.step(before, 1, len(before))
        is_together = self.num_hosts == 1 and self.architecture.logits_divisor == 1.0
        num_together = steps_together(alone.total_s) if is_together else 1
        return alone + Times(overhead_s=PYTHON_STEP_S / num_together - PYTHON_STEP_S)

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
        overhead_s = sizes.num_layers * self.ceilings.layer_us * 1e-6
        group_heads = len(share.query_heads) / len(share.kv_heads)
        if tokens == 1:
            total_s += max(cache_s, self.ceilings.cache_seconds(ranks * cached_bytes, group_heads))
            overhead_s += self._inputs_s(rank)
        else:
            total_s += cache_s
            width = len(share.query_heads) * sizes.head_dim
            flop = sum(attention_flop(width, count, tokens, window) for window in windows for count in before)
            total_s += self.ceilings.prompt_attention_seconds(ranks * flop, group_heads)
        return Times(memory_s=memory_s, arithmetic_s=total_s - memory_s, overhead_s=overhead_s)

    def _inputs_s(self, rank: int) -> float:
        """Return what the products of a token cost a rank for their inputs: at once for all experts of a layer.

        What a rank saves by its share of the inputs it waits for the others of its host in the sum that follows, as
        nobody there takes over panels of who is late.
        """
        products = {_EXPERT.sub(".", matrix.field): matrix for matrix in self.stored[rank].matrices}
        total_s = 0.0
        for field, matrix in products.items():
            shares = self.ranks_per_host if field.endswith(_SUMMED) else 1
            total_s += self.ceilings.input_seconds(matrix.form.kind, shares * matrix.inputs)
        return total_s

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
