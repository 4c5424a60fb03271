"""What one step of the decoder reads: the tokens of every sequence and where their keys and values live.

Letters: T tokens of the step, B sequences, R rows whose logits are wanted, M blocks of the longest sequence.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch


class StepBatch:
    """One step, equal on every rank. A prompt and single next tokens may share a step.

    Shapes: `token_ids`, `positions`, `slots` [T] int64, sequences one after the other; `block_tables` [B, M] int32;
    `query_starts` [B+1] int32, the first token of each sequence and T; `context_lengths` [B] int32, the keys that
    the last token of each sequence sees, itself included; `logits_rows` [R] int64, indices into the T tokens.
    A slot is block * block_size + offset in the block.

    All of it lies in two pieces of memory in that order, `logits_rows` behind `slots`. The tensors are made when they
    are first asked for: the native decoder wants addresses alone, and between two steps a call of torch is dear.
    """

    def __init__(
        self, wide: array[int], narrow: array[int], first: int, num_tokens: int, num_sequences: int, num_rows: int
    ) -> None:
        """Take the int64 numbers, and the int32 ones from `first` of `narrow` on; the rest is the block tables'."""
        self._wide, self._narrow, self._first = wide, narrow, first
        self.num_tokens, self.num_sequences, self.num_rows = num_tokens, num_sequences, num_rows
        self.max_blocks = (len(narrow) - first - 2 * num_sequences - 1) // num_sequences
        assert len(wide) == 3 * num_tokens + num_rows and wide.itemsize == 8 and narrow.itemsize == 4

    @property
    def longest_context(self) -> int:
        """Return the largest of the context lengths."""
        return max(self._narrow[-self.num_sequences :])

    def addresses(self) -> list[int]:
        """Return where token ids, positions, slots, block tables, query starts, context lengths and rows begin."""
        wide, tokens, sequences = self._wide.buffer_info()[0], 8 * self.num_tokens, self.num_sequences
        tables = self._narrow.buffer_info()[0] + 4 * self._first
        starts = tables + 4 * sequences * self.max_blocks
        contexts = starts + 4 * (sequences + 1)
        return [wide, wide + tokens, wide + 2 * tokens, tables, starts, contexts, wide + 3 * tokens]

    def with_logits_rows(self, rows: Iterable[int]) -> StepBatch:
        """Return the same step with the logits of other tokens wanted."""
        wide = self._wide[: 3 * self.num_tokens] + array("q", rows)
        num_rows = len(wide) - 3 * self.num_tokens
        return StepBatch(wide, self._narrow, self._first, self.num_tokens, self.num_sequences, num_rows)

    @property
    def token_ids(self) -> torch.Tensor:
        """Return the tokens. Shapes: [T] int64."""
        return self._wide_tensors[0]

    @property
    def positions(self) -> torch.Tensor:
        """Return the place of each token in its sequence. Shapes: [T] int64."""
        return self._wide_tensors[1]

    @property
    def slots(self) -> torch.Tensor:
        """Return where the keys and values of each token go. Shapes: [T] int64."""
        return self._wide_tensors[2]

    @property
    def logits_rows(self) -> torch.Tensor:
        """Return the tokens whose logits are wanted. Shapes: [R] int64."""
        return self._wide_tensors[3]

    @property
    def block_tables(self) -> torch.Tensor:
        """Return the blocks of each sequence, then zeros. Shapes: [B, M] int32."""
        return self._narrow_tensors[0].view(self.num_sequences, self.max_blocks)

    @property
    def query_starts(self) -> torch.Tensor:
        """Return the first token of each sequence, and T. Shapes: [B+1] int32."""
        return self._narrow_tensors[1]

    @property
    def context_lengths(self) -> torch.Tensor:
        """Return the keys that the last token of each sequence sees. Shapes: [B] int32."""
        return self._narrow_tensors[2]

    @cached_property
    def _wide_tensors(self) -> list[torch.Tensor]:
        return _cut(torch.frombuffer(self._wide, dtype=torch.int64), [self.num_tokens] * 3 + [self.num_rows])

    @cached_property
    def _narrow_tensors(self) -> list[torch.Tensor]:
        sizes = [self.num_sequences * self.max_blocks, self.num_sequences + 1, self.num_sequences]
        return _cut(torch.frombuffer(self._narrow, dtype=torch.int32)[self._first :], sizes)


def _cut(tensor: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    return [tensor[stop - size : stop] for size, stop in zip(sizes, accumulate(sizes), strict=True)]


class BestWords(NamedTuple):
    """The largest logit of each row, NaN where the row holds one, and the lowest word that has it.

    Shapes: `values` [R] float32; `words` [R] int32, counted from the rank's first word; from `GreedySteps`, which knows
    those of all ranks, from the first of all.
    """

    values: array[float]
    words: array[int]


# Takes a batch of one token of every sequence, with blocks for all steps, the cache, and how many steps; the best word
# of a step is the token of the next. Returns the best words of the whole vocabulary in each, equal on all ranks. Steps
# end after one in which logits are not numbers.
GreedySteps = Callable[[StepBatch, Sequence[tuple[torch.Tensor, torch.Tensor]], int], list[BestWords]]


class LogitsRoom:
    """Where a step leaves its logits and their best words; made anew only when the number of rows changes."""

    def __init__(self, num_rows: int, width: int) -> None:
        self.num_rows = num_rows
        with torch.inference_mode(False):  # so that they can be changed in place in every mode
            self.logits = torch.empty((num_rows, width), dtype=torch.float32)
        self.best = BestWords(array("f", bytes(4 * num_rows)), array("i", bytes(4 * num_rows)))
        parts = (self.best.values.buffer_info()[0], self.best.words.buffer_info()[0])
        self.addresses = (self.logits.data_ptr(), *parts)
