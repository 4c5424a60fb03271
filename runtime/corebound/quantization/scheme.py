"""How weights are quantized: width, group and symmetry, and the text by which a user names them. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from corebound.config.suggest import nearest
from corebound.errors import ConfigError

GROUP_SIZES = (32, 64, 128)
_BITS = {"int8": 8, "int4": 4}
_SYMMETRY = {"sym": True, "asym": False}
_PER_CHANNEL = "channel"


@dataclass(frozen=True)
class Scheme:
    """One way to store a matrix in whole numbers: value = (code - zero) * scale.

    `group_size` is how many inputs of an output share a scale and a zero; None means all of them (per channel).
    A symmetric scheme has the middle of the codes as its zero everywhere.
    """

    bits: Literal[4, 8]
    group_size: int | None
    symmetric: bool

    def __post_init__(self) -> None:
        assert self.bits in (4, 8), self.bits
        assert self.group_size is None or self.group_size in GROUP_SIZES, self.group_size

    @property
    def name(self) -> str:
        """Return the whole text form, such as `int4:g128:asym`; parse_scheme reads it back."""
        group = _PER_CHANNEL if self.group_size is None else f"g{self.group_size}"
        return f"int{self.bits}:{group}:{'sym' if self.symmetric else 'asym'}"

    @property
    def largest_code(self) -> int:
        """Return the largest code; the smallest is 0."""
        return (1 << self.bits) - 1

    @property
    def middle_code(self) -> int:
        """Return the code that stands for 0 in a symmetric scheme."""
        return 1 << (self.bits - 1)

    def num_groups(self, num_inputs: int) -> int:
        """Return how many groups the inputs of one output are in; the last may be short."""
        return 1 if self.group_size is None else -(-num_inputs // self.group_size)


# What a width alone means. docs/quantization.md has the measurements behind the choice for int4.
DEFAULTS = {"int8": Scheme(8, None, True), "int4": Scheme(4, 128, False)}


def is_scheme(text: str) -> bool:
    """Return whether a dtype that a user gave names a scheme, rightly or wrongly spelled, rather than a float type."""
    return text.partition(":")[0] in _BITS


def parse_scheme(text: str) -> Scheme:
    """Return the scheme that a text such as `int4` or `int8:g64:sym` names; parts that are left out have defaults.

    Raises: ConfigError that lists what can be given.
    """
    width, *options = text.split(":")
    if width not in DEFAULTS:
        raise _wrong(text, f"unknown width {width!r}")
    group_size, symmetric = DEFAULTS[width].group_size, DEFAULTS[width].symmetric
    groups: dict[str, int | None] = {_PER_CHANNEL: None, **{f"g{size}": size for size in GROUP_SIZES}}
    given: set[str] = set()
    for option in options:
        kind = "group" if option in groups else "symmetry" if option in _SYMMETRY else None
        if kind is None:
            raise _wrong(text, f"unknown part {option!r}", option, [*groups, *_SYMMETRY])
        if kind in given:
            raise _wrong(text, f"a second {kind} {option!r}")
        given.add(kind)
        if kind == "group":
            group_size = groups[option]
        else:
            symmetric = _SYMMETRY[option]
    return Scheme(cast(Literal[4, 8], _BITS[width]), group_size, symmetric)


def _wrong(text: str, problem: str, name: str = "", valid: list[str] | None = None) -> ConfigError:
    close = nearest(name, valid) if name and valid else None
    groups = "|".join((_PER_CHANNEL, *(f"g{size}" for size in GROUP_SIZES)))
    defaults = ", ".join(f"{width} is {scheme.name}" for width, scheme in DEFAULTS.items())
    return ConfigError(
        f"quantization scheme {text!r}: {problem}",
        hint=(f"did you mean `{close}`? " if close else "")
        + f"expected {'|'.join(DEFAULTS)}, then, if you like, :{groups} and :{'|'.join(_SYMMETRY)}; {defaults}",
    )
