"""The compiler's words for the instruction set that this machine really runs.

`-march=native` asks the processor alone. Under a hypervisor that saves fewer registers than the processor has, or in a
home directory that unlike machines share, code built so dies of an illegal instruction.
"""

from __future__ import annotations

import functools

from corebound.config import env
from corebound.config.suggest import require_choice
from corebound.topology import read_topology
from corebound.topology.isa import REQUIRED_FEATURES

# Where the compiler's flag is not `-m` and the feature.
_FLAGS = {
    "avx512_bf16": "-mavx512bf16",
    "avx512_vnni": "-mavx512vnni",
    "amx_tile": "-mamx-tile",
    "amx_bf16": "-mamx-bf16",
    "amx_int8": "-mamx-int8",
}


def simd_variant() -> str:
    """Return the best variant that processor and operating system allow together, or the one that COREBOUND_ISA names.

    Raises: ConfigError for a name that is none.
    """
    forced = env.settings().isa
    if forced is not None:
        return require_choice("variant", forced, REQUIRED_FEATURES, where="COREBOUND_ISA")
    return _best()


def simd_flags(variant: str | None = None) -> list[str]:
    """Return the compiler's arguments for a variant, by default for the one that runs here."""
    features = REQUIRED_FEATURES[variant or simd_variant()]
    return [_FLAGS.get(feature, f"-m{feature}") for feature in features]


def simd_width(variant: str | None = None) -> str:
    """Return the macro that DeepSpeed's sources ask for the width of vectors."""
    variant = variant or simd_variant()
    if variant == "generic":
        return "-D__SCALAR__"
    return "-D__AVX256__" if variant == "avx2" else "-D__AVX512__"


@functools.cache
def _best() -> str:
    return read_topology().isa.best
