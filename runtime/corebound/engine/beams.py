"""Beam search over shared blocks: beams exchange block numbers, and a block is copied only when one of two writes it.

The rules are those of transformers with length_penalty 1 and early_stopping False: a finished text scores its mean
log-probability, and the search ends when no running beam can be expected to beat the worst of `num_beams` finished.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from corebound.engine.kv_cache import BlockAllocator, BlockCopy, blocks_for
from corebound.engine.request import FinishReason, Request
from corebound.engine.sampling import Answer
from corebound.engine.step import SamplingRow, StepInput


def blocks_for_beams(num_prompt_tokens: int, max_length: int, num_beams: int, block_size: int) -> int:
    """Return the most blocks that a search can hold: full blocks of the prompt are shared, all others may differ."""
    num_shared = num_prompt_tokens // block_size
    return num_shared + num_beams * (blocks_for(max_length, block_size) - num_shared)


@dataclass(frozen=True)
class Finished:
    """A finished text: its mean log-probability, its tokens, and why it ended."""

    score: float
    token_ids: tuple[int, ...]
    reason: FinishReason


@dataclass(eq=False)
class _Beam:
    score: float
    token_ids: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


class BeamSearch:
    """One request's search. Alternate `inputs` and `advance` until `is_done`, then take `best`, then `close`."""

    def __init__(
        self,
        request: Request,
        allocator: BlockAllocator,
        *,
        block_size: int,
        max_length: int,
        end_token_ids: frozenset[int],
        vocab_size: int,
        max_step_tokens: int,
    ) -> None:
        self._prompt = list(request.prompt_token_ids)
        self._num_beams = request.params.num_beams
        self._max_new_tokens = max_length - len(self._prompt)
        self._allocator = allocator
        self._block_size = block_size
        self._end_token_ids = end_token_ids
        self._max_step_tokens = max_step_tokens
        # Enough that `num_beams` go on even when every end token of every beam is among the best.
        self._num_kept = min(vocab_size, max(2, 1 + len(end_token_ids)) * self._num_beams)
        self._row = SamplingRow(num_best=self._num_kept)
        self._num_prefilled = 0
        self._beams = [_Beam(0.0)]
        self._finished: list[Finished] = []
        self.is_done = False

    @property
    def best(self) -> Finished:
        """The finished text with the highest score."""
        return max(self._finished, key=lambda finished: finished.score)

    @property
    def num_generated(self) -> int:
        """How many tokens each running beam has."""
        return len(self._beams[0].token_ids)

    def inputs(self) -> tuple[list[StepInput], list[BlockCopy]]:
        """Return the parts of the next step, and the blocks to copy before it."""
        if self._num_prefilled < len(self._prompt):
            return [self._prefill_input()], []
        copies: list[BlockCopy] = []
        parts = []
        for beam in self._beams:
            position = len(self._prompt) + len(beam.token_ids) - 1
            copies += self._make_writable(beam, position // self._block_size)
            parts.append(StepInput([beam.token_ids[-1]], position, list(beam.blocks), self._row))
        return parts, copies

    def advance(self, answers: list[Answer]) -> None:
        """Choose the next beams from the best continuations of the present ones; nothing to do amid the prompt."""
        if not answers:
            return
        continuations = heapq.nlargest(
            self._num_kept,
            (
                (beam.score + logprob, -index, -token_id)
                for index, (beam, answer) in enumerate(zip(self._beams, answers, strict=True))
                for token_id, logprob in zip(answer.token_ids, answer.logprobs, strict=True)
            ),
        )
        length = len(self._beams[0].token_ids) + 1
        is_last = length >= self._max_new_tokens
        survivors: list[_Beam] = []
        for place, (score, negative_index, negative_id) in enumerate(continuations):
            # Negative, so that of equal scores the first beam and the lowest id win.
            parent, token_id = self._beams[-negative_index], -negative_id
            token_ids = [*parent.token_ids, token_id]
            if token_id in self._end_token_ids or is_last:
                # Only what is among the best `num_beams` counts as finished; the rest were spare.
                if place < self._num_beams:
                    reason: FinishReason = "stop" if token_id in self._end_token_ids else "length"
                    self._finished.append(Finished(score / length, tuple(token_ids), reason))
            elif len(survivors) < self._num_beams:
                survivors.append(_Beam(score, token_ids, parent.blocks))
        self._finished = heapq.nlargest(self._num_beams, self._finished, key=lambda finished: finished.score)
        self._replace_beams(survivors)
        self.is_done = not survivors or self._cannot_improve(survivors[0].score / length)

    def close(self) -> None:
        """Release all blocks."""
        self._replace_beams([])

    def _cannot_improve(self, best_running: float) -> bool:
        return len(self._finished) == self._num_beams and best_running <= self._finished[-1].score

    def _prefill_input(self) -> StepInput:
        beam = self._beams[0]
        while len(beam.blocks) < blocks_for(len(self._prompt), self._block_size):
            beam.blocks.append(self._allocator.allocate())
        first = self._num_prefilled
        tokens = self._prompt[first : first + self._max_step_tokens]
        self._num_prefilled += len(tokens)
        return StepInput(tokens, first, beam.blocks, self._row if self._num_prefilled == len(self._prompt) else None)

    def _make_writable(self, beam: _Beam, index: int) -> list[BlockCopy]:
        """Give the beam a block of its own at `index`, and return the copy that this takes, if any."""
        if index == len(beam.blocks):
            beam.blocks.append(self._allocator.allocate())
            return []
        shared = beam.blocks[index]
        if self._allocator.num_holders(shared) == 1:
            return []
        beam.blocks[index] = self._allocator.allocate()
        self._allocator.release(shared)
        return [BlockCopy(shared, beam.blocks[index])]

    def _replace_beams(self, beams: list[_Beam]) -> None:
        # Share first: a block that goes from parent to child must not become free in between.
        for beam in beams:
            beam.blocks = list(beam.blocks)
            for block in beam.blocks:
                self._allocator.share(block)
        for beam in self._beams:
            for block in beam.blocks:
                self._allocator.release(block)
        self._beams = beams
