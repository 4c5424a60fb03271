"""Cosines and sines of rotary positions, computed when positions are first reached."""

from __future__ import annotations

import math

import torch

from corebound.models.architecture import Rope

_FIRST_POSITIONS = 1024


class RotaryTable:
    """Cosine and sine of every angle up to the longest context seen; it grows by doubling.

    A table for all positions that a model allows would take 64 MiB for 128 Ki positions, on every rank.
    """

    def __init__(self, rope: Rope, head_dim: int) -> None:
        self._frequencies = inverse_frequencies(rope, rope.dim or head_dim)
        self._magnitude = rope.magnitude
        self._cos = self._sin = torch.empty((0, len(self._frequencies)))

    def up_to(self, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines for at least `num_positions` positions.

        Shapes: each [P, R/2] float32 for R dimensions that turn, P >= num_positions.
        """
        if num_positions > self._cos.shape[0]:
            length = max(_FIRST_POSITIONS, 1 << (num_positions - 1).bit_length())
            angles = torch.outer(torch.arange(length, dtype=torch.float32), self._frequencies)
            self._cos, self._sin = angles.cos() * self._magnitude, angles.sin() * self._magnitude
        return self._cos, self._sin


def inverse_frequencies(rope: Rope, rotary_dim: int) -> torch.Tensor:
    """Return the angle per position of each pair of dimensions.

    Shapes: [rotary_dim / 2] float32.

    Source: Su et al., RoFormer (2021); the llama3 scaling is described in Grattafiori et al. (2024), the yarn scaling
    in Peng et al., YaRN: Efficient Context Window Extension of Large Language Models (2023), section 3.2.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.scaling == "linear":
        return frequencies / rope.factor
    if rope.scaling == "default":
        return frequencies
    if rope.scaling == "yarn":
        return frequencies * torch.lerp(
            torch.tensor(1.0), torch.tensor(1.0 / rope.factor), _yarn_ramp(rope, rotary_dim)
        )
    assert rope.scaling == "llama3", "families only describe the scalings known here"
    # How many turns a pair makes within the context of the first training: many are kept, few are slowed down.
    turns = rope.original_max_positions * frequencies / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return frequencies * torch.lerp(torch.tensor(1.0 / rope.factor), torch.tensor(1.0), kept.clamp(0, 1))


def _yarn_ramp(rope: Rope, rotary_dim: int) -> torch.Tensor:
    """Return for each pair of dimensions how much of its frequency is divided, from 0 to 1."""

    def pair_with(turns: float) -> float:
        length = rope.original_max_positions / (2 * math.pi * turns)  # positions to the radian
        return rotary_dim * math.log(length) / (2 * math.log(rope.theta))

    first = max(math.floor(pair_with(rope.fast_turns)), 0)
    last = min(math.ceil(pair_with(rope.slow_turns)), rotary_dim - 1)
    width = last - first or 0.001  # a step
    return ((torch.arange(rotary_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
