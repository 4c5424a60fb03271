"""What one step of the decoder reads: the tokens of every sequence and where their keys and values live.

Letters: T tokens of the step, B sequences, R rows whose logits are wanted, M blocks of the longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One step, equal on every rank. A prompt and single next tokens may share a step.

    Shapes: `token_ids`, `positions`, `slots` [T] int64, sequences one after the other; `block_tables` [B, M] int32;
    `query_starts` [B+1] int32, the first token of each sequence and T; `context_lengths` [B] int32, the keys that
    the last token of each sequence sees, itself included; `logits_rows` [R] int64, indices into the T tokens.
    A slot is block * block_size + offset in the block.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    block_tables: torch.Tensor
    query_starts: torch.Tensor
    context_lengths: torch.Tensor
    logits_rows: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Return T, the tokens of the step."""
        return self.token_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        """Return B, the sequences of the step."""
        return self.context_lengths.shape[0]


def batch_of(
    token_ids: Sequence[Sequence[int]],
    computed_lengths: Sequence[int],
    blocks: Sequence[Sequence[int]],
    block_size: int,
) -> StepBatch:
    """Return the step that computes `token_ids[b]` after `computed_lengths[b]` tokens whose keys are already stored.

    `blocks[b]` are the cache blocks of sequence b in order, enough for all its tokens. Logits are asked for the last
    token of each sequence.
    """
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    contexts: list[int] = []
    for tokens, computed, table in zip(token_ids, computed_lengths, blocks, strict=True):
        context = computed + len(tokens)
        assert tokens and len(table) * block_size >= context, "a sequence needs tokens, and blocks for all of them"
        ids.extend(tokens)
        positions.extend(range(computed, context))
        slots.extend(table[at // block_size] * block_size + at % block_size for at in range(computed, context))
        starts.append(len(ids))
        contexts.append(context)
    width = max((len(table) for table in blocks), default=0)
    tables = torch.zeros((len(blocks), width), dtype=torch.int32)
    for row, table in enumerate(blocks):
        tables[row, : len(table)] = torch.tensor(list(table), dtype=torch.int32)
    return StepBatch(
        token_ids=torch.tensor(ids, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        slots=torch.tensor(slots, dtype=torch.int64),
        block_tables=tables,
        query_starts=torch.tensor(starts, dtype=torch.int32),
        context_lengths=torch.tensor(contexts, dtype=torch.int32),
        logits_rows=torch.tensor([start - 1 for start in starts[1:]], dtype=torch.int64),
    )


def allocate_kv_cache(
    *, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return zeroed key and value tensors for each layer.

    Shapes: each [num_blocks, num_kv_heads, block_size, head_dim], with the kv heads of this rank.
    """
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    return [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(num_layers)]
