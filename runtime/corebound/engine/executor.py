"""Runs steps on all ranks: rank 0 sends each step, every rank computes it, rank 0 learns the tokens."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Sequence as Rows
from typing import Protocol

import torch

from corebound.comm.base import Collectives
from corebound.engine import sampling
from corebound.engine.kv_cache import BlockCopy, KVCache, copy_blocks
from corebound.engine.step import SamplingRow, Step, StepInput, decode_step, encode_step
from corebound.engine.together import steps_together
from corebound.models.batch import BestWords, GreedySteps, StepBatch

# The first message of a step: two words of header, then the step itself if it fits, else a second message. 4 KiB
# carry a decode step of dozens of sequences.
_INLINE_WORDS = 1024
_STEP, _STOP, _CHECK = 1, 2, 3


class Decoder(Protocol):
    """The part of a model that the engine uses."""

    vocab_start: int
    vocab_stop: int
    best_words: BestWords | None  # of the last forward, where it found them with the logits

    def forward(self, batch: StepBatch, kv_cache: KVCache) -> torch.Tensor:
        """Return the local logits, fp32 [R, vocab_stop - vocab_start]."""

    @property
    def greedy_steps(self) -> GreedySteps | None:
        """Several steps in one call, or None where there is no such call."""


class Executor:
    """One rank's model, cache and place in the group. Rank 0 calls `run`, `check` and `stop`, the others `follow`."""

    def __init__(self, decoder: Decoder, kv_cache: KVCache, collectives: Collectives, block_size: int) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._collectives = collectives
        self._block_size = block_size
        self._message = torch.zeros(_INLINE_WORDS, dtype=torch.int32)
        self._message_words = self._message.numpy()
        self._is_in_step = False
        steps = decoder.greedy_steps
        mine = torch.tensor([decoder.vocab_stop - decoder.vocab_start, steps is not None], dtype=torch.int32)
        # Ranks come here when they have loaded, each in its own time; the death of one still ends the wait.
        told = collectives.all_gather(mine, math.inf).reshape(-1, 2).tolist()
        self._shard_widths = [width for width, _ in told]
        # One rank decides for all, so all must be able to.
        self._greedy_steps = steps if all(is_able for _, is_able in told) else None
        self._last_step_s = math.inf

    @property
    def is_in_step(self) -> bool:
        """Whether a step began on this rank and did not end: after an error, whether the ranks are out of step."""
        return self._is_in_step

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows."""
        return sum(self._shard_widths)

    @property
    def max_greedy_steps(self) -> int:
        """How many steps `run_greedily` is to be asked for: as many as the last one was fast; 0 where it cannot be."""
        return steps_together(self._last_step_s) if self._greedy_steps is not None else 0

    def run_greedily(self, inputs: Rows[StepInput], num_steps: int) -> list[list[sampling.Answer]]:
        """Compute `num_steps` steps on all ranks and return the answers of each, an answer for every input.

        Every input is one token with a greedy row, and has blocks for all steps; its answer is its next token. Steps
        end after one in which some answer has no token.

        Raises: CommError when a rank is gone.
        """
        # A step that reads beyond a table of blocks would write over another sequence's keys.
        assert all(part.first_position + num_steps <= len(part.blocks) * self._block_size for part in inputs)
        started_s = time.perf_counter()
        words = encode_step(inputs, self._block_size, (), num_steps)
        self._is_in_step = True
        if self._collectives.size > 1:
            self._send(words)
        found = self._run_greedy_steps(decode_step(words))
        self._is_in_step = False
        self._last_step_s = (time.perf_counter() - started_s) / len(found)
        return [sampling.greedy_answers(best, 0) for best in found]

    def run(self, inputs: Rows[StepInput], copies: Rows[BlockCopy] = ()) -> list[sampling.Answer]:
        """Compute one step on all ranks and return the answer of every input that has a sampling row, in order.

        Raises: CommError when a rank is gone.
        """
        self._last_step_s = math.inf  # of a single token nothing is known yet
        words = encode_step(inputs, self._block_size, copies)
        self._is_in_step = True
        if self._collectives.size > 1:
            self._send(words)
        step = decode_step(words)
        logits = self._compute(step)
        if self._collectives.size == 1 and sampling.are_greedy(step.rows):
            answers = sampling.greedy_answers(self._best_words(logits), self._decoder.vocab_start)
            self._is_in_step = False
            return answers
        gathered = self._gather(logits, step.rows)
        self._is_in_step = False
        return sampling.merge(gathered, step.rows, self._shard_widths) if step.rows else []

    def stop(self) -> None:
        """Let the other ranks return from `follow`."""
        if self._collectives.size > 1:
            self._message_words[0] = _STOP
            self._collectives.broadcast(self._message)

    def check(self, timeout_s: float) -> None:
        """Return when every rank has answered.

        Raises: CommError when one is gone, or does not answer in time.
        """
        if self._collectives.size > 1:
            self._is_in_step = True
            self._message_words[0] = _CHECK
            self._collectives.broadcast(self._message)
            self._collectives.barrier(timeout_s)
            self._is_in_step = False

    def follow(self) -> None:
        """Compute the steps that rank 0 sends until it stops."""
        self._is_in_step = True
        while (words := self._receive()) is not None:
            step = decode_step(words)
            if step.num_greedy_steps:
                self._run_greedy_steps(step)
            else:
                self._gather(self._compute(step), step.rows)
        self._is_in_step = False

    def _compute(self, step: Step) -> torch.Tensor:
        if step.copies:
            copy_blocks(self._kv_cache, step.copies)
        return self._decoder.forward(step.batch, self._kv_cache)

    def _run_greedy_steps(self, step: Step) -> list[BestWords]:
        assert self._greedy_steps is not None, "rank 0 was told that not all ranks can"
        return self._greedy_steps(step.batch, self._kv_cache, step.num_greedy_steps)

    def _best_words(self, logits: torch.Tensor) -> BestWords:
        return self._decoder.best_words or sampling.find_best_words(logits)

    @torch.inference_mode()
    def _gather(self, logits: torch.Tensor, rows: list[SamplingRow]) -> torch.Tensor:
        """Return the candidates of these rows from all ranks; equal on every rank."""
        if not rows:
            return torch.empty(0, dtype=torch.int32)
        vocab_start = self._decoder.vocab_start
        if sampling.are_greedy(rows):
            return self._collectives.all_gather(sampling.greedy_offer(self._best_words(logits), vocab_start))
        sampling.penalise(logits, rows, vocab_start)
        count = sampling.num_candidates(rows)
        while True:
            offer = sampling.local_candidates(logits, rows, vocab_start, count)
            gathered = self._collectives.all_gather(offer)
            if not self._wants_more(gathered, rows):
                return gathered
            count *= sampling.GROWTH

    def _wants_more(self, gathered: torch.Tensor, rows: list[SamplingRow]) -> bool:
        if not sampling.may_need_more(rows):
            return False
        # Rank 0 decides for all: floating point may round differently on another kind of CPU.
        verdict = torch.zeros(1, dtype=torch.int32)
        if self._collectives.rank == 0:
            verdict[0] = sampling.needs_more(gathered, rows, self._shard_widths)
        if self._collectives.size > 1:
            self._collectives.broadcast(verdict)
        return bool(verdict[0])

    def _send(self, words: array[int]) -> None:
        self._message_words[:2] = _STEP, len(words)
        if len(words) <= _INLINE_WORDS - 2:
            self._message_words[2 : 2 + len(words)] = words
            self._collectives.broadcast(self._message)
        else:
            self._collectives.broadcast(self._message)
            self._collectives.broadcast(torch.frombuffer(words, dtype=torch.int32))

    def _receive(self) -> array[int] | None:
        # Between requests rank 0 is silent for as long as nobody asks; if it dies, the broadcast ends with an error.
        self._collectives.broadcast(self._message, timeout_s=math.inf)
        kind, length = self._message_words[:2].tolist()
        while kind == _CHECK:
            self._collectives.barrier()
            self._collectives.broadcast(self._message, timeout_s=math.inf)
            kind, length = self._message_words[:2].tolist()
        if kind == _STOP:
            return None
        assert kind == _STEP, f"unknown message {kind}"
        if length <= _INLINE_WORDS - 2:
            return array("i", self._message_words[2 : 2 + length].tobytes())
        words = array("i", bytes(4 * length))
        self._collectives.broadcast(torch.frombuffer(words, dtype=torch.int32))
        return words
