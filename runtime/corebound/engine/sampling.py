"""Sampling over a sharded vocabulary: each rank offers a few candidates, one rank merges them. Pure functions.

Letters: R rows, V local vocabulary, K candidates, W ranks.

A token is drawn by the Gumbel-max trick: the largest of logit/temperature + noise, over the tokens that top-k and
top-p leave. The noise of a token is a function of (seed, position, token id) alone, so a draw depends neither on the
number of ranks nor on what else is in the batch.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from corebound.engine.step import SamplingRow
from corebound.models.batch import BestWords

# Enough for nearly every nucleus of a trained model; a wider one asks again with more.
FIRST_NUCLEUS_CANDIDATES = 64
GROWTH = 8
_NO_SUM = int.from_bytes(array("f", [-math.inf]).tobytes(), sys.byteorder, signed=True)

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answer:
    """What a row of logits came to: token ids, best first, and their log-probabilities where they were asked for.

    No token at all where the logits are not numbers: that is the end of this row's request, and of no other.
    """

    token_ids: list[int]
    logprobs: list[float]


def num_candidates(rows: Sequence[SamplingRow]) -> int:
    """Return how many candidates per rank the first exchange carries: the most that any row needs."""
    return max((_first_count(row) for row in rows), default=1)


def may_need_more(rows: Sequence[SamplingRow]) -> bool:
    """Return whether any row could turn out to need a second exchange."""
    return any(_is_open_nucleus(row) for row in rows)


def are_greedy(rows: Sequence[SamplingRow]) -> bool:
    """Return whether every row asks for the largest logit alone, as the model gives it.

    Such a step spends as little as can be between two reads of the weights. One rank has its answers at once, by
    `greedy_answers`; several offer by `greedy_offer`, which stands for `penalise` and `local_candidates`, and `merge`
    has a short way.
    """
    return all(not row.temperature and not row.num_best and row.repetition_penalty == 1.0 for row in rows)


def find_best_words(logits: torch.Tensor) -> BestWords:
    """Return the best word of every row, where no decoder has found them with the logits.

    Shapes: logits [R, V] fp32.
    """
    values, words = logits.max(dim=1)  # of equal values the first, and NaN when there is one
    return BestWords(array("f", values.tolist()), array("i", words.tolist()))


def greedy_answers(best: BestWords, vocab_start: int) -> list[Answer]:
    """Return the answers of rows that `are_greedy` where one rank has the whole vocabulary."""
    found = zip(best.values, best.words, strict=True)
    return [Answer([vocab_start + word] if value == value else [], []) for value, word in found]  # NaN is not itself


def greedy_offer(best: BestWords, vocab_start: int) -> torch.Tensor:
    """Return what `local_candidates` returns for rows that `are_greedy`: int32 [R, 3]."""
    # In Python's own types, as steps are: few calls, and of torch hardly any.
    offer = array("i")
    for value, word in zip(_bits(best.values), best.words, strict=True):
        offer.extend((_NO_SUM, value, vocab_start + word))
    return torch.frombuffer(offer, dtype=torch.int32).view(-1, 3)


def _bits(values: array[float]) -> array[int]:
    bits = array("i")
    bits.frombytes(values.tobytes())
    return bits


def penalise(logits: torch.Tensor, rows: Sequence[SamplingRow], vocab_start: int) -> None:
    """Apply the repetition penalty of transformers in place: seen tokens lose, whatever the sign of their logit.

    Shapes: logits [R, V] fp32.
    """
    for index, row in enumerate(rows):
        if row.repetition_penalty != 1.0:
            is_local = (row.seen >= vocab_start) & (row.seen < vocab_start + logits.shape[1])
            where = torch.from_numpy(row.seen[is_local].astype(np.int64) - vocab_start)
            seen = logits[index, where]
            logits[index, where] = torch.where(seen < 0, seen * row.repetition_penalty, seen / row.repetition_penalty)


def local_candidates(logits: torch.Tensor, rows: Sequence[SamplingRow], vocab_start: int, count: int) -> torch.Tensor:
    """Return this rank's offer: int32 [R, 1 + 2*count], per row the bits of a log-sum-exp and of values, then ids.

    Shapes: logits [R, V] fp32. Missing candidates have the value -inf and the id -1. Values are logits over
    temperature; for a row that samples from the whole vocabulary the noise is already added.
    """
    assert logits.dtype == torch.float32 and logits.shape[0] == len(rows)
    num_rows, width = logits.shape
    offer = torch.empty(num_rows, 1 + 2 * count, dtype=torch.int32)
    values = offer[:, : 1 + count].view(torch.float32)
    ids = offer[:, 1 + count :]
    values[:] = -math.inf
    ids[:] = -1
    plain = [index for index, row in enumerate(rows) if row.temperature == 0 and not row.num_best]
    if plain:
        # max() returns the first of equal values on CPU, and NaN when there is one.
        best, where = (logits if len(plain) == num_rows else logits[plain]).max(dim=1)
        values[plain, 1] = best
        ids[plain, 0] = where.to(torch.int32) + vocab_start
    for index, row in enumerate(rows):
        if row.temperature == 0 and not row.num_best:
            continue
        scores = logits[index] / row.temperature if row.temperature else logits[index]
        wanted = 1 if _is_pure(row) else min(count, width)
        if _is_pure(row):
            scores = scores + _noise_of_range(row, vocab_start, width)
        else:
            values[index, 0] = torch.logsumexp(scores, dim=0)
        top, where = _top(scores, wanted)
        values[index, 1 : 1 + wanted] = top
        ids[index, :wanted] = where.to(torch.int32) + vocab_start
    return offer


def needs_more(gathered: torch.Tensor, rows: Sequence[SamplingRow], shard_widths: Sequence[int]) -> bool:
    """Return whether some nucleus reaches beyond the candidates that are certain to be the best of all ranks.

    Shapes: gathered as `merge` takes it.
    """
    for index, row in enumerate(rows):
        if not _is_open_nucleus(row):
            continue
        merged = _Merged(gathered, index, shard_widths)
        if merged.holds_numbers and _nucleus(merged, row) is None:
            return True
    return False


def merge(gathered: torch.Tensor, rows: Sequence[SamplingRow], shard_widths: Sequence[int]) -> list[Answer]:
    """Return the answer of every row.

    Shapes: gathered int32 [W, R, 1 + 2*K], the offers of all ranks in rank order, vocabulary order likewise.
    """
    if are_greedy(rows):
        return _merge_greedy(gathered)
    found = [_Merged(gathered, index, shard_widths) for index in range(len(rows))]
    return [
        _answer(merged, row) if merged.holds_numbers else Answer([], [])
        for merged, row in zip(found, rows, strict=True)
    ]


def _merge_greedy(gathered: torch.Tensor) -> list[Answer]:
    _, num_rows, num_words = gathered.shape
    assert num_words == 3, "such rows are offered one word by each rank"
    words = array("i", gathered.numpy().tobytes())
    values = array("f", words.tobytes())
    answers = []
    for first in range(1, 3 * num_rows, 3):
        best, token_id = values[first], words[first + 1]
        for at in range(first + 3 * num_rows, len(words), 3 * num_rows):
            value = values[at]
            # NaN, which is no number and not itself, before all; then the lowest id of equal ones.
            if best == best and not value <= best:
                best, token_id = value, words[at + 1]
        answers.append(Answer([token_id] if best == best else [], []))
    return answers


class _Merged:
    """The candidates of one row from all ranks: best first, ties by lowest id."""

    def __init__(self, gathered: torch.Tensor, index: int, shard_widths: Sequence[int]) -> None:
        words = gathered[:, index].numpy()
        count = (words.shape[1] - 1) // 2
        floats = np.ascontiguousarray(words[:, : 1 + count]).view(np.float32)
        ids = words[:, 1 + count :].astype(np.int64)
        valid = ids >= 0
        values, ids = floats[:, 1:][valid], ids[valid]
        order = np.lexsort((ids, -values))
        self.values: Floats = values[order]
        self.ids: Ids = ids[order]
        self._shard_sums = floats[:, 0].astype(np.float64)
        # A rank that holds more than it offered may hold anything up to its smallest offer.
        unseen = [floats[rank, count] for rank, width in enumerate(shard_widths) if width > count]
        self.bound = max(unseen, default=-math.inf)

    @property
    def holds_numbers(self) -> bool:
        """Whether the row's logits are numbers. A NaN may give way to equal offers, but not in the sum beside them."""
        return bool(self.values.size) and not np.isnan(self.values).any() and not np.isnan(self._shard_sums).any()

    @property
    def log_sum_exp(self) -> float:
        """The logarithm of the sum of exponentials over the whole vocabulary."""
        return float(np.logaddexp.reduce(self._shard_sums))


def _answer(merged: _Merged, row: SamplingRow) -> Answer:
    if row.num_best:
        best = slice(0, row.num_best)
        logprobs = merged.values[best].astype(np.float64) - merged.log_sum_exp
        return Answer(merged.ids[best].tolist(), logprobs.tolist())
    if row.temperature == 0 or _is_pure(row):
        return Answer([int(merged.ids[0])], [])
    nucleus = _nucleus(merged, row)
    size = len(merged.ids) if nucleus is None else nucleus
    noise = gumbel_noise(row.seed, row.position, merged.ids[:size])
    return Answer([int(merged.ids[np.argmax(merged.values[:size] + noise)])], [])


def _nucleus(merged: _Merged, row: SamplingRow) -> int | None:
    """Return how many of the best candidates top-k and top-p leave; None when that cannot be told from these."""
    values = merged.values.astype(np.float64)
    if row.top_k:
        values = values[: row.top_k]
        if row.top_p == 1.0:
            return len(values)
        total, certain = float(np.logaddexp.reduce(values)), len(values)
    else:
        total, certain = merged.log_sum_exp, int(np.searchsorted(-values, -merged.bound, side="right"))
    reached = np.cumsum(np.exp(values - total))
    size = 1 + int(np.searchsorted(reached, row.top_p, side="left"))
    if size <= certain:
        return size
    return len(values) if row.top_k or merged.bound == -math.inf else None


def gumbel_noise(seed: int, position: int, ids: Ids) -> npt.NDArray[np.float64]:
    """Return one draw of the standard Gumbel distribution per token id, a pure function of all three arguments.

    Source: counter-based noise with the 64-bit finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
    """
    key = _mix(np.array([seed], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    key = _mix(key ^ np.array([position], np.uint64))
    bits = _mix(_mix(key + ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _noise_of_range(row: SamplingRow, start: int, width: int) -> torch.Tensor:
    return torch.from_numpy(gumbel_noise(row.seed, row.position, np.arange(start, start + width, dtype=np.int64)))


def _top(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `count` largest and their places; of equal values at the edge, those with the lowest places."""
    if count == 1:
        value, where = scores.max(dim=0)
        return value.reshape(1), where.reshape(1)
    top, where = torch.topk(scores, count)
    edge = top[-1]
    above = where[top > edge]
    # topk() takes any of several equal values; the choice must not depend on how the vocabulary is cut.
    equal = (scores == edge).nonzero().squeeze(1)[: count - len(above)]
    if len(above) + len(equal) < count:
        return top, where  # NaN compares with nothing: left as it is, for merge() to report
    where = torch.cat([above, equal])
    return scores[where], where


def _first_count(row: SamplingRow) -> int:
    if row.num_best:
        return row.num_best
    if row.temperature == 0 or _is_pure(row):
        return 1
    return row.top_k or FIRST_NUCLEUS_CANDIDATES


def _is_pure(row: SamplingRow) -> bool:
    """Whether the row samples from the whole vocabulary."""
    return row.temperature > 0 and not row.top_k and row.top_p == 1.0


def _is_open_nucleus(row: SamplingRow) -> bool:
    """Whether top-p alone decides how many tokens are candidates."""
    return row.temperature > 0 and not row.top_k and row.top_p < 1.0
