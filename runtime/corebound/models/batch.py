"""What one step of the decoder reads: the tokens of every sequence and where their keys and values live.

Letters: T tokens of the step, B sequences, R rows whose logits are wanted, M blocks of the longest sequence.
"""

from __future__ import annotations

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
