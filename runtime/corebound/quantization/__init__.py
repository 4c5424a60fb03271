"""Weight-only quantization: schemes, rounding to nearest, and the packed checkpoints of others.

Naming a scheme and reading a configuration needs no torch; what does is in modules of its own.
"""

from corebound.quantization.scheme import GROUP_SIZES, Scheme, is_scheme, parse_scheme

__all__ = ["GROUP_SIZES", "Scheme", "is_scheme", "parse_scheme"]
