"""What the one decoder must know about a model: its sizes, and the few choices in which families differ."""

from __future__ import annotations

from dataclasses import dataclass

from corebound.sharding import Geometry


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions: the base `theta` and how the frequencies are scaled for longer contexts.

    `scaling` is `default`, `linear` (all frequencies divided by `factor`), `llama3` (low ones divided, those between
    the two wavelength bounds blended) or `yarn` (those of fewer turns than `slow_turns` within the original positions
    divided, those of more than `fast_turns` kept, a ramp between them). Cosines and sines are multiplied by
    `magnitude`. The first `dim` dimensions of a head turn, all of them where it is None, each with the one half of
    `dim` further on, or with its neighbour where they are `interleaved`.
    """

    theta: float
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    magnitude: float = 1.0
    dim: int | None = None
    interleaved: bool = False


@dataclass(frozen=True, kw_only=True)
class Architecture(Geometry):
    """One model: its sizes and the choices of its family.

    `norm` is `layer` or `rms`, and `norm_offset` is added to its weights. `activation` is `gelu_tanh`, `gelu_erf`,
    `relu`, or a gated one, which multiplies what it makes of half a row with the other half: `silu_gated`,
    `gelu_tanh_gated`. Positions are rotary where there is a `rope`, learned where there are `num_positions` (each
    `position_offset` rows further on in its table), else alibi. `attention_scale` None means one over the root of the
    head size. `windows` says for each layer how many keys a query sees, 0 for all; it is empty where no layer has one.

    Embeddings are multiplied by `embedding_multiplier` (rounded to the type of the weights first where
    `rounded_multiplier` says so), what is added to the stream by `residual_multiplier`, and logits are divided by
    `logits_divisor`. With a `parallel_residual` the MLP reads the stream that the attention reads, by the same norm
    where it has none of its own. Where there are experts, a token goes through `num_chosen_experts` of a layer's, each
    weighted by a softmax over all of them, divided by the sum of those chosen if `renormalised_experts`.
    `max_positions` None means that nothing but memory limits the context.
    """

    norm: str
    norm_eps: float
    activation: str
    embedding_norm: bool = False
    norm_as_residual: bool = False
    rope: Rope | None = None
    max_positions: int | None = None
    norm_offset: float = 0.0
    attention_scale: float | None = None
    windows: tuple[int, ...] = ()
    embedding_multiplier: float = 1.0
    rounded_multiplier: bool = False
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    parallel_residual: bool = False
    position_offset: int = 0
    num_chosen_experts: int = 0
    renormalised_experts: bool = False

    @property
    def tied_head(self) -> bool:
        """Return whether the head is the embedding matrix again."""
        return "untied_head" not in self.features

    @property
    def gated(self) -> bool:
        """Return whether the MLP multiplies an activated half of its first product with the other half."""
        return self.activation.endswith("_gated")

    @property
    def alibi(self) -> bool:
        """Return whether scores are lowered by the distance of a key."""
        return self.rope is None and self.num_positions == 0

    @property
    def score_scale(self) -> float:
        """Return what products of queries and keys are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def rotary_dim(self) -> int:
        """Return how many dimensions of a head turn."""
        return 0 if self.rope is None else self.rope.dim or self.head_dim

    def window(self, layer: int) -> int:
        """Return how many keys a query of a layer sees, 0 for all."""
        return self.windows[layer] if self.windows else 0
