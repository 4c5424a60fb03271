"""Runs steps on all ranks: rank 0 sends each step, every rank computes it, rank 0 learns the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from typing import Protocol

import numpy as np
import torch

from corebound.comm.base import Collectives
from corebound.engine import sampling
from corebound.engine.kv_cache import BlockCopy, KVCache, copy_blocks
from corebound.engine.step import SamplingRow, Step, StepInput, Words, decode_step, encode_step
from corebound.models.batch import StepBatch

# The first message of a step: two words of header, then the step itself if it fits, else a second message. 4 KiB
# carry a decode step of dozens of sequences.
_INLINE_WORDS = 1024
_STEP, _STOP, _CHECK = 1, 2, 3


class Decoder(Protocol):
    """The part of a model that the engine uses."""

    vocab_start: int
    vocab_stop: int

    def forward(self, batch: StepBatch, kv_cache: KVCache) -> torch.Tensor:
        """Return the local logits, fp32 [R, vocab_stop - vocab_start]."""


class Executor:
    """One rank's model, cache and place in the group. Rank 0 calls `run`, `check` and `stop`, the others `follow`."""

    def __init__(self, decoder: Decoder, kv_cache: KVCache, collectives: Collectives, block_size: int) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._collectives = collectives
        self._block_size = block_size
        self._message = torch.zeros(_INLINE_WORDS, dtype=torch.int32)
        self._message_words: Words = self._message.numpy()
        self._is_in_step = False
        width = torch.tensor([decoder.vocab_stop - decoder.vocab_start], dtype=torch.int32)
        # Ranks come here when they have loaded, each in its own time; the death of one still ends the wait.
        self._shard_widths = [int(value) for value in collectives.all_gather(width, math.inf).reshape(-1)]

    @property
    def is_in_step(self) -> bool:
        """Whether a step began on this rank and did not end: after an error, whether the ranks are out of step."""
        return self._is_in_step

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows."""
        return sum(self._shard_widths)

    def run(self, inputs: Rows[StepInput], copies: Rows[BlockCopy] = ()) -> list[sampling.Answer]:
        """Compute one step on all ranks and return the answer of every input that has a sampling row, in order.

        Raises: CommError when a rank is gone.
        """
        words = encode_step(inputs, self._block_size, copies)
        self._is_in_step = True
        if self._collectives.size > 1:
            self._send(words)
        step = decode_step(words)
        gathered = self._compute(step)
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
            self._compute(decode_step(words))
        self._is_in_step = False

    @torch.inference_mode()
    def _compute(self, step: Step) -> torch.Tensor:
        """Return the gathered candidates of this step's rows; equal on every rank."""
        copy_blocks(self._kv_cache, step.copies)
        logits = self._decoder.forward(step.batch, self._kv_cache)
        if not step.rows:
            return torch.empty(0, dtype=torch.int32)
        vocab_start = self._decoder.vocab_start
        sampling.penalise(logits, step.rows, vocab_start)
        count = sampling.num_candidates(step.rows)
        while True:
            offer = sampling.local_candidates(logits, step.rows, vocab_start, count)
            gathered = self._collectives.all_gather(offer)
            if not self._wants_more(gathered, step.rows):
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

    def _send(self, words: Words) -> None:
        self._message_words[:2] = _STEP, len(words)
        if len(words) <= _INLINE_WORDS - 2:
            self._message_words[2 : 2 + len(words)] = words
            self._collectives.broadcast(self._message)
        else:
            self._collectives.broadcast(self._message)
            self._collectives.broadcast(torch.from_numpy(words))

    def _receive(self) -> Words | None:
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
            return self._message_words[2 : 2 + length].copy()
        words = np.empty(length, np.int32)
        self._collectives.broadcast(torch.from_numpy(words))
        return words
