"""One step as data: what the model reads, how each answer is sampled, and its form on the wire (int32 words)."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from corebound.engine.kv_cache import BlockCopy
from corebound.engine.scheduler import Chunk
from corebound.models.batch import StepBatch

Words = npt.NDArray[np.int32]


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
    seen: Words = field(default_factory=lambda: np.empty(0, np.int32))


@dataclass(frozen=True, kw_only=True)
class Step:
    """Everything that a rank needs to run one step."""

    batch: StepBatch
    rows: list[SamplingRow]
    copies: list[BlockCopy] = field(default_factory=list)


_ROW = np.dtype(
    [
        ("temperature", "<f4"),
        ("top_k", "<i4"),
        ("top_p", "<f4"),
        ("repetition_penalty", "<f4"),
        ("seed", "<u8"),
        ("position", "<i4"),
        ("num_best", "<i4"),
        ("num_seen", "<i4"),
        ("unused", "<i4"),
    ]
)
_ROW_WORDS = _ROW.itemsize // 4
_HEADER_WORDS = 6  # num_tokens, num_sequences, max_blocks, num_rows, num_copies, num_seen


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


def encode_step(inputs: Rows[StepInput], block_size: int, copies: Rows[BlockCopy] = ()) -> Words:
    """Return the words of a step over `inputs`; `decode_step` reads them back."""
    counts = np.array([len(part.token_ids) for part in inputs], np.int32)
    num_tokens, num_sequences = int(counts.sum()), len(inputs)
    starts = np.zeros(num_sequences + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    max_blocks = max(len(part.blocks) for part in inputs)
    tables = np.zeros((num_sequences, max_blocks), np.int32)
    positions = np.empty(num_tokens, np.int32)
    slots = np.empty(num_tokens, np.int32)
    for index, part in enumerate(inputs):
        tables[index, : len(part.blocks)] = part.blocks
        span = slice(starts[index], starts[index + 1])
        positions[span] = np.arange(part.first_position, part.first_position + counts[index])
        slots[span] = tables[index, positions[span] // block_size] * block_size + positions[span] % block_size
    rows = [part.row for part in inputs if part.row is not None]
    logits_rows = [int(starts[index + 1]) - 1 for index, part in enumerate(inputs) if part.row is not None]
    seen = [row.seen for row in rows]
    header = [num_tokens, num_sequences, max_blocks, len(rows), len(copies), sum(map(len, seen))]
    token_ids = [token for part in inputs for token in part.token_ids]
    return np.concatenate(
        [
            np.array(header + token_ids, np.int32),
            positions,
            slots,
            tables.reshape(-1),
            starts,
            np.array([part.first_position + len(part.token_ids) for part in inputs] + logits_rows, np.int32),
            _encode_rows(rows),
            np.array(copies, np.int32).reshape(-1),
            *seen,
        ]
    )


def decode_step(words: Words) -> Step:
    """Return the step that `encode_step` wrote. The tensors may share memory with `words`."""
    num_tokens, num_sequences, max_blocks, num_rows, num_copies, num_seen = words[:_HEADER_WORDS].tolist()
    lengths = (
        *(num_tokens, num_tokens, num_tokens),
        num_sequences * max_blocks,
        *(num_sequences + 1, num_sequences, num_rows, num_rows * _ROW_WORDS),
        *(2 * num_copies, num_seen),
    )
    parts: list[Words] = []
    offset = _HEADER_WORDS
    for length in lengths:
        parts.append(words[offset : offset + length])
        offset += length
    assert offset == len(words), f"step of {len(words)} words, its header says {offset}"
    tokens, positions, slots, tables, starts, contexts, logits_rows, row_words, copies, seen = parts
    batch = StepBatch(
        token_ids=torch.from_numpy(tokens.astype(np.int64)),
        positions=torch.from_numpy(positions.astype(np.int64)),
        slots=torch.from_numpy(slots.astype(np.int64)),
        block_tables=torch.from_numpy(tables.reshape(num_sequences, max_blocks)),
        query_starts=torch.from_numpy(starts),
        context_lengths=torch.from_numpy(contexts),
        logits_rows=torch.from_numpy(logits_rows.astype(np.int64)),
    )
    pairs = copies.reshape(-1, 2).tolist()
    return Step(batch=batch, rows=_decode_rows(row_words, seen), copies=[BlockCopy(*pair) for pair in pairs])


def _encode_rows(rows: Rows[SamplingRow]) -> Words:
    table = np.zeros(len(rows), _ROW)
    for index, row in enumerate(rows):
        table[index] = (
            *(row.temperature, row.top_k, row.top_p, row.repetition_penalty),
            *(row.seed, row.position, row.num_best, len(row.seen), 0),
        )
    return table.view(np.int32)


def _decode_rows(words: Words, seen: Words) -> list[SamplingRow]:
    rows = []
    offset = 0
    for item in words.copy().view(_ROW).tolist():
        temperature, top_k, top_p, penalty, seed, position, num_best, num_seen, _ = item
        rows.append(
            SamplingRow(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                repetition_penalty=penalty,
                seed=seed,
                position=position,
                num_best=num_best,
                seen=seen[offset : offset + num_seen],
            )
        )
        offset += num_seen
    return rows
