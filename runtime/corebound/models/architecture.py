"""What the one decoder must know about a model: its sizes, and the few choices in which families differ."""

from __future__ import annotations

from dataclasses import dataclass

from corebound.sharding import Geometry


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions: the base `theta` and how the frequencies are scaled for longer contexts.

    `scaling` is `default`, `linear` (all frequencies divided by `factor`) or `llama3` (low ones divided, those
    between the two wavelength bounds blended).
    """

    theta: float
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, kw_only=True)
class Architecture(Geometry):
    """One model: its sizes and the choices of its family.

    `norm` is `layer` or `rms`; `activation` is `gelu_tanh` or `silu_gated`; `rope` None means alibi.
    `max_positions` None means that nothing but memory limits the context.
    """

    norm: str
    norm_eps: float
    activation: str
    embedding_norm: bool = False
    norm_as_residual: bool = False
    rope: Rope | None = None
    max_positions: int | None = None

    @property
    def tied_head(self) -> bool:
        """Return whether the head is the embedding matrix again."""
        return "untied_head" not in self.features
