"""Continuous batching: which sequences run in the next step, and with how many tokens. No I/O, no tensors."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from corebound.engine.kv_cache import BlockAllocator, blocks_for
from corebound.engine.sequence import Sequence
from corebound.errors import RequestError


@dataclass(frozen=True)
class Chunk:
    """The next `num_tokens` pending tokens of a sequence; `wants_logits` when they are its last known ones."""

    sequence: Sequence
    num_tokens: int

    @property
    def wants_logits(self) -> bool:
        """Whether the model's answer to this chunk is a new token."""
        return self.num_tokens == self.sequence.num_pending


class Scheduler:
    """Keeps the queue and the running set.

    Order: running sequences that decode, then those still in prefill, then the queue, first come first served.
    A sequence is admitted when the blocks of all its known tokens are free. When a running one needs a block and
    none is free, the youngest gives its blocks up and is computed again later (its tokens are kept).
    """

    def __init__(
        self, allocator: BlockAllocator, *, block_size: int, max_num_sequences: int = 64, max_step_tokens: int = 512
    ) -> None:
        assert max_num_sequences >= 1 and max_step_tokens >= 1
        self.allocator = allocator
        self.block_size = block_size
        self.max_num_sequences = max_num_sequences
        # A decode step of the largest batch must fit, or the oldest sequences would starve the others.
        self.max_step_tokens = max(max_step_tokens, max_num_sequences)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    def check_fits(self, max_length: int) -> None:
        """Raise RequestError when prompt and continuation of `max_length` tokens exceed the whole cache."""
        # The last token is given out and never computed, so it needs no place.
        self.check_blocks(max_length, blocks_for(max_length - 1, self.block_size))

    def check_blocks(self, max_length: int, needed: int) -> None:
        """Raise RequestError when the `needed` blocks of a request of `max_length` tokens exceed the whole cache."""
        if needed > self.allocator.num_blocks:
            raise RequestError(
                f"a request of {max_length} tokens (prompt and continuation) needs {needed * self.block_size} tokens "
                f"of KV cache, the whole cache holds {self.allocator.num_blocks * self.block_size}",
                hint=f"make kv_cache_gib {needed / self.allocator.num_blocks:.2f} times as large, or ask for less",
            )

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue.

        Raises: RequestError when it could never fit, even alone.
        """
        self.check_fits(sequence.max_length)
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step, with blocks for their tokens taken; empty only without work."""
        budget = self.max_step_tokens
        chunks: list[Chunk] = []
        preempted: set[int] = set()
        decoding = [sequence for sequence in self.running if sequence.num_pending == 1]
        prefilling = [sequence for sequence in self.running if sequence.num_pending > 1]
        for sequence in decoding + prefilling:
            if budget == 0:
                break
            if id(sequence) in preempted or not self._make_room(sequence, preempted):
                continue
            chunks.append(Chunk(sequence, min(sequence.num_pending, budget)))
            budget -= chunks[-1].num_tokens
        # A victim may have been given a chunk before its blocks were needed elsewhere.
        dropped = [chunk for chunk in chunks if id(chunk.sequence) in preempted]
        budget += sum(chunk.num_tokens for chunk in dropped)
        chunks = [chunk for chunk in chunks if id(chunk.sequence) not in preempted]
        if not preempted:
            chunks += self._admit(budget)
        assert chunks or not self.has_work, "work left, but nothing can run"
        return chunks

    def reserve(self, chunks: list[Chunk], num_steps: int) -> int:
        """Take blocks for more steps after that of `chunks`, of a token of each sequence; return how many steps fit.

        That is half of `num_steps`, half of that and so on where too few blocks are free: nobody has to give way.
        """
        sequences = [chunk.sequence for chunk in chunks]
        while num_steps > 1:
            lengths = [len(sequence.token_ids) + num_steps - 1 for sequence in sequences]
            # Who has more than it needs, as steps together may end early, keeps it.
            missing = [
                max(0, blocks_for(length, self.block_size) - len(sequence.blocks))
                for length, sequence in zip(lengths, sequences, strict=True)
            ]
            if sum(missing) <= self.allocator.num_free:
                break
            num_steps //= 2
        for sequence in sequences:
            self._take_blocks(sequence, num_steps - 1)
        return num_steps

    def complete(self, chunk: Chunk) -> None:
        """Record that the tokens of `chunk` are now in the KV cache."""
        chunk.sequence.num_computed += chunk.num_tokens

    def finish(self, sequence: Sequence) -> None:
        """Remove a running or waiting sequence and release its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def _admit(self, budget: int) -> list[Chunk]:
        chunks = []
        while self.waiting and budget > 0 and len(self.running) < self.max_num_sequences:
            sequence = self.waiting[0]
            if blocks_for(len(sequence.token_ids), self.block_size) > self.allocator.num_free:
                break
            self.waiting.popleft()
            self.running.append(sequence)
            self._take_blocks(sequence)
            chunks.append(Chunk(sequence, min(sequence.num_pending, budget)))
            budget -= chunks[-1].num_tokens
        return chunks

    def _make_room(self, sequence: Sequence, preempted: set[int]) -> bool:
        """Take the blocks that the known tokens need, from younger sequences if needed; False if it gave way itself."""
        missing = blocks_for(len(sequence.token_ids), self.block_size) - len(sequence.blocks)
        while missing > self.allocator.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            preempted.add(id(victim))
            if victim is sequence:
                return False
        self._take_blocks(sequence)
        return True

    def _take_blocks(self, sequence: Sequence, num_ahead: int = 0) -> None:
        while len(sequence.blocks) < blocks_for(len(sequence.token_ids) + num_ahead, self.block_size):
            sequence.blocks.append(self.allocator.allocate())

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        for block in sequence.blocks:
            self.allocator.release(block)
        sequence.blocks.clear()
