"""What the config.json of several families says in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from corebound.models.architecture import Rope
from corebound.models.config_reader import ConfigReader

# What transformers calls the activations that the decoder computes.
PLAIN_ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The sizes of the attention."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def sizes(self) -> dict[str, Any]:
        """Return them as fields of an Architecture."""
        return dict(vars(self))


def heads(config: ConfigReader, *, head_dim: bool = True, default_head_dim: int | None = None) -> Heads:
    """Return the heads by the names that most families use; `head_dim` says whether the family has such a field.

    Raises: ModelLoadError naming the field.
    """
    hidden_size = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads, {num_heads}", num_kv_heads)
    named = head_dim and (config.values.get("head_dim") is not None or default_head_dim is not None)
    if hidden_size % num_heads and not named:
        expected = f"a divisor of hidden_size {hidden_size}" + (", or head_dim" if head_dim else "")
        raise config.wrong("num_attention_heads", expected, num_heads)
    computed = default_head_dim or max(1, hidden_size // num_heads)
    size = config.integer("head_dim", default=computed)
    if not head_dim and size != computed:
        raise config.wrong("head_dim", f"{computed}, hidden_size over num_attention_heads", size)
    return Heads(hidden_size=hidden_size, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=size)


def rope(
    config: ConfigReader,
    head_dim: int,
    max_positions: int,
    *,
    partial: float | None = None,
    scalings: Iterable[str] = ("default", "linear", "llama3", "yarn"),
) -> Rope:
    """Return the rotary settings; transformers 5 keeps them in rope_parameters, older versions in several places.

    `partial` is the part of a head that turns where nothing says it, None for a family that always turns all of it.
    `scalings` are the types of scaling that the family has and the decoder computes.

    Raises: ModelLoadError naming the field that asks for what is not computed here.
    """
    field = "rope_parameters" if config.values.get("rope_parameters") is not None else "rope_scaling"
    scaling = config.section("rope_parameters", "rope_scaling")
    theta = config.number("rope_theta", "rotary_emb_base", default=10000.0)
    factor = config.number("partial_rotary_factor", "rotary_pct", default=partial or 1.0)
    if scaling is None:
        return Rope(theta=theta, dim=_rotary_dim(config, "partial_rotary_factor", factor, head_dim, partial))
    if any(isinstance(value, dict) for value in scaling.values.values()):
        raise config.wrong(field, "one set of values for all layers", scaling.values)
    theta = scaling.number("rope_theta", default=theta)
    factor = scaling.number("partial_rotary_factor", default=factor)
    dim = _rotary_dim(scaling, "partial_rotary_factor", factor, head_dim, partial)
    kind = scaling.choice("rope_type", "type", valid=scalings, default="default")
    if kind == "default":
        return Rope(theta=theta, dim=dim)
    by = scaling.number("factor")
    if kind == "linear":
        return Rope(theta=theta, scaling=kind, factor=by, dim=dim)
    if kind == "yarn":
        return _yarn(scaling, Rope(theta=theta, scaling=kind, factor=by, dim=dim), max_positions)
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.wrong("high_freq_factor", f"a number above low_freq_factor, {low:g}", high)
    return Rope(
        theta=theta,
        scaling=kind,
        factor=by,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=scaling.integer("original_max_position_embeddings", default=max_positions),
        dim=dim,
    )


def _yarn(scaling: ConfigReader, found: Rope, max_positions: int) -> Rope:
    """Return the settings of YaRN, as far as they are those of its paper."""
    require(scaling, truncate=True)
    for field in ("mscale", "mscale_all_dim"):
        if value := scaling.values.get(field):
            raise scaling.wrong(field, "none: the magnitude is that of the paper, or attention_factor", value)
    if found.theta <= 1.0:
        raise scaling.wrong("rope_theta", "a number above 1", found.theta)
    fast, slow = scaling.number("beta_fast", default=32.0), scaling.number("beta_slow", default=1.0)
    if fast <= slow:
        raise scaling.wrong("beta_fast", f"a number above beta_slow, {slow:g}", fast)
    return replace(
        found,
        original_max_positions=scaling.integer("original_max_position_embeddings", default=max_positions),
        fast_turns=fast,
        slow_turns=slow,
        magnitude=scaling.number("attention_factor", default=max(1.0, 0.1 * math.log(found.factor) + 1.0)),
    )


def longest_context(found: Rope, max_positions: int) -> int:
    """Return how many positions a model takes: with YaRN as many as it stretches the original ones to."""
    if found.scaling != "yarn":
        return max_positions
    return max(max_positions, int(found.factor * found.original_max_positions))


def _rotary_dim(config: ConfigReader, field: str, factor: float, head_dim: int, partial: float | None) -> int | None:
    if factor != 1.0 and partial is None:
        raise config.wrong(field, "1.0", factor)
    dim = int(head_dim * factor)
    if factor > 1.0 or dim < 2 or dim % 2:
        expected = f"a part of the {head_dim} dimensions of a head that is an even number of them"
        if factor == 1.0:
            raise config.wrong("head_dim", "an even number, for rotary positions", head_dim)
        raise config.wrong(field, expected, factor)
    return None if dim == head_dim else dim


def windows(
    config: ConfigReader, num_layers: int, max_positions: int, *, default: int | None = None
) -> tuple[int, ...]:
    """Return the sliding windows of a family in which all layers have that of the field `sliding_window`, or none.

    Raises: ModelLoadError naming the field.
    """
    window = _window(config, default)
    kind = "full_attention" if window is None else "sliding_attention"
    if config.values.get("layer_types", [kind] * num_layers) not in (None, [kind] * num_layers):
        raise config.wrong("layer_types", f"{kind} for all {num_layers} layers", config.values["layer_types"])
    return _narrow([window] * num_layers, max_positions)


def layered_windows(config: ConfigReader, num_layers: int, max_positions: int) -> tuple[int, ...]:
    """Return the sliding windows of a family in which `use_sliding_window` gives some layers one.

    Raises: ModelLoadError naming the field.
    """
    window = _window(config, 4096) if config.flag("use_sliding_window", default=False) else None
    kinds = config.values.get("layer_types")
    if kinds is None:
        first = config.integer("max_window_layers", default=28, minimum=0)
        return _narrow([window if layer >= first else None for layer in range(num_layers)], max_positions)
    allowed = {"full_attention"} if window is None else {"full_attention", "sliding_attention"}
    if not isinstance(kinds, list) or len(kinds) != num_layers or not set(kinds) <= allowed:
        raise config.wrong("layer_types", f"{num_layers} times {' or '.join(sorted(allowed))}", kinds)
    return _narrow([window if kind == "sliding_attention" else None for kind in kinds], max_positions)


def _window(config: ConfigReader, default: int | None) -> int | None:
    """Return the field `sliding_window`, where null says that there is none."""
    if config.values.get("sliding_window", default) is None:
        return None
    return config.integer("sliding_window", default=default)


def _narrow(found: list[int | None], max_positions: int) -> tuple[int, ...]:
    """Return windows with 0 for those that no context leaves; nothing where there are only such."""
    sizes = tuple(0 if window is None or window >= max_positions else window for window in found)
    return sizes if any(sizes) else ()


def activation(config: ConfigReader, field: str, *, default: str) -> str:
    """Return the activation of an MLP without a gate, as an Architecture names it.

    Raises: ModelLoadError naming the field.
    """
    return PLAIN_ACTIVATIONS[config.choice(field, valid=PLAIN_ACTIVATIONS, default=default)]


def require(config: ConfigReader, **expected: bool) -> None:
    """Check flags of which one value is computed; a flag that is not there has it.

    Raises: ModelLoadError naming the field.
    """
    for field, value in expected.items():
        if config.flag(field, default=value) is not value:
            raise config.wrong(field, str(value).lower(), not value)


def untied(config: ConfigReader, *, tied_by_default: bool) -> bool:
    """Return whether the head is a matrix of its own."""
    return not config.flag("tie_word_embeddings", default=tied_by_default)


def features(**present: bool) -> frozenset[str]:
    """Return the names of those that are present."""
    return frozenset(name for name, there in present.items() if there)
