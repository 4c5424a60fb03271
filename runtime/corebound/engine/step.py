"""One step as data: what the model reads, how each answer is sampled, and its form on the wire (int32 words)."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from corebound.engine.kv_cache import BlockCopy
from corebound.engine.scheduler import Chunk
from corebound.models.batch import StepBatch

TokenIds = npt.NDArray[np.int32]
NO_TOKENS: TokenIds = np.empty(0, np.int32)


@dataclass(frozen=True, kw_only=True)
class SamplingRow:
    """How one row of logits becomes a token. `position` counts generated tokens; with `seed` it names the noise.

    `temperature` 0 is greedy. `top_k` 0 is no limit. `num_best` above 0 asks for that many best tokens with their
    log-probabilities in place of one token (beam search). `seen` are the tokens that the repetition penalty touches.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    position: int = 0
    num_best: int = 0
    seen: TokenIds = field(default_factory=lambda: NO_TOKENS)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Everything that a rank needs to run one step, or the first of `num_greedy_steps` that need nobody between them.

    0 of those where the answers are sampled from logits.
    """

    batch: StepBatch
    rows: list[SamplingRow]
    copies: list[BlockCopy] = field(default_factory=list)
    num_greedy_steps: int = 0


# temperature, top_k, top_p, repetition_penalty, seed, position, num_best, num_seen, unused
_ROW = struct.Struct("<fiffQiiii")
_ROW_WORDS = _ROW.size // 4
_HEADER_WORDS = 7  # num_tokens, num_sequences, max_blocks, num_rows, num_copies, num_seen, num_greedy_steps


@dataclass(frozen=True)
class StepInput:
    """One sequence's part of a step: its next tokens, the position of the first, its blocks, and its sampling."""

    token_ids: Rows[int]
    first_position: int
    blocks: Rows[int]
    row: SamplingRow | None


def input_of(chunk: Chunk, row: SamplingRow | None) -> StepInput:
    """Return the part of a step that `chunk` is; `row` says how to sample after it, None for a chunk amid a prompt."""
    sequence = chunk.sequence
    first = sequence.num_computed
    return StepInput(sequence.token_ids[first : first + chunk.num_tokens], first, sequence.blocks, row)


def encode_step(
    inputs: Rows[StepInput], block_size: int, copies: Rows[BlockCopy] = (), num_greedy_steps: int = 0
) -> array[int]:
    """Return the words of a step over `inputs`; `decode_step` reads them back.

    Lists and arrays of Python, because most steps have few words: after a step, which reads all weights, the code of
    numpy and torch is in no cache, and a call of theirs costs more than all of this.
    """
    max_blocks = max([len(part.blocks) for part in inputs])
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    tables: list[int] = []
    starts, lengths, logits_rows = [0], [], []
    rows: list[SamplingRow] = []
    for part in inputs:
        blocks, length = part.blocks, part.first_position + len(part.token_ids)
        places = range(part.first_position, length)
        token_ids += part.token_ids
        positions += places
        slots += [blocks[place // block_size] * block_size + place % block_size for place in places]
        tables += blocks
        tables += [0] * (max_blocks - len(blocks))
        starts.append(len(token_ids))
        lengths.append(length)
        if part.row is not None:
            rows.append(part.row)
            logits_rows.append(len(token_ids) - 1)
    words = array("i", [len(token_ids), len(inputs), max_blocks, len(rows), len(copies)])
    words.extend((sum([len(row.seen) for row in rows]), num_greedy_steps))
    for row in rows:
        words.frombytes(_encode_row(row))
    for row in rows:
        if len(row.seen):
            words.frombytes(row.seen.tobytes())
    for pair in copies:
        words.extend(pair)
    for numbers in (token_ids, positions, slots, logits_rows, tables, starts, lengths):
        words.extend(numbers)
    return words


def decode_step(words: array[int]) -> Step:
    """Return the step that `encode_step` wrote. The batch shares memory with `words`."""
    num_tokens, num_sequences, max_blocks, num_rows, num_copies, num_seen, num_greedy_steps = words[:_HEADER_WORDS]
    seen_at = _HEADER_WORDS + num_rows * _ROW_WORDS
    copies_at = seen_at + num_seen
    tokens_at = copies_at + 2 * num_copies
    tables_at = tokens_at + 3 * num_tokens + num_rows
    end = tables_at + num_sequences * (max_blocks + 2) + 1
    assert end == len(words), f"step of {len(words)} words, its header says {end}"
    copies = words[copies_at:tokens_at]
    return Step(
        batch=StepBatch(array("q", words[tokens_at:tables_at]), words, tables_at, num_tokens, num_sequences, num_rows),
        rows=_decode_rows(words[_HEADER_WORDS:seen_at].tobytes(), words[seen_at:copies_at]),
        copies=[BlockCopy(*pair) for pair in zip(copies[::2], copies[1::2], strict=True)],
        num_greedy_steps=num_greedy_steps,
    )


def _encode_row(row: SamplingRow) -> bytes:
    return _ROW.pack(
        *(row.temperature, row.top_k, row.top_p, row.repetition_penalty),
        *(row.seed, row.position, row.num_best, len(row.seen), 0),
    )


def _decode_rows(packed: bytes, seen: array[int]) -> list[SamplingRow]:
    rows = []
    offset = 0
    for temperature, top_k, top_p, penalty, seed, position, num_best, num_seen, _ in _ROW.iter_unpack(packed):
        rows.append(
            SamplingRow(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                repetition_penalty=penalty,
                seed=seed,
                position=position,
                num_best=num_best,
                seen=np.array(seen[offset : offset + num_seen], np.int32) if num_seen else NO_TOKENS,
            )
        )
        offset += num_seen
    return rows
