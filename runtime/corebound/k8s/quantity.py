"""Quantities as Kubernetes writes them: `500m` CPUs, `2Gi` bytes."""

from __future__ import annotations

import re
from fractions import Fraction

from corebound.errors import ConfigError

MIB = 1 << 20
_FORM = re.compile(r"(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+))(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")
_FACTORS = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    **{letter: Fraction(1000**power) for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Fraction(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
}


def parse_quantity(value: object) -> Fraction | None:
    """Return the amount that a quantity means, None when it is not one. Numbers are quantities too, quoted or not."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    match = _FORM.fullmatch(str(value))
    if match is None:
        return None
    suffix = match["suffix"] or ""
    if suffix and suffix not in _FACTORS:
        return Fraction(match["number"]) * Fraction(10) ** int(suffix[1:])
    return Fraction(match["number"]) * _FACTORS[suffix]


def num_bytes(text: str, where: str) -> int:
    """Return the bytes of a quantity above 0. Raises: ConfigError naming `where`."""
    amount = parse_quantity(text)
    if amount is None or amount <= 0:
        raise ConfigError(f"{where}: expected a size such as 2Gi, found {text!r}")
    return int(amount)


def mebibytes(size_bytes: int) -> str:
    """Return a size as a quantity in whole Mi, rounded up."""
    return f"{-(-size_bytes // MIB)}Mi"


def not_a_quantity(found: object) -> str:
    """Return what to say of a value that is none."""
    return f"expected a quantity such as 500m or 2Gi, found {found!r} ({type(found).__name__})"
