"""How many bytes a checkpoint has at a dtype, and the cache of a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

from corebound.engine.kv_cache import BLOCK_SIZE, block_bytes, blocks_for
from corebound.models import ModelDescription
from corebound.models.architecture import Architecture
from corebound.quantization import parse_scheme
from corebound.quantization.scheme import Scheme, is_scheme
from corebound.sharding.expected import is_packable
from corebound.sharding.plan import model_parameters

_PLAIN_BITS = 16
_ELEMENT_BYTES = 2


def checkpoint_bytes(description: ModelDescription, dtypes: Sequence[str]) -> dict[str, int]:
    """Return the bytes of all parameters at each dtype: of a quantized one the matrices with scales, the rest plain."""
    return {dtype: _bytes_at(description, parse_scheme(dtype) if is_scheme(dtype) else None) for dtype in dtypes}


def _bytes_at(description: ModelDescription, scheme: Scheme | None) -> int:
    bits = 0.0
    for parameter in model_parameters(description):
        num_weights = math.prod(parameter.shape)
        if scheme is None or not is_packable(parameter):
            bits += num_weights * _PLAIN_BITS
        else:
            group = scheme.group_size or parameter.shape[1]
            bits += num_weights * (scheme.bits + (_PLAIN_BITS + (0 if scheme.symmetric else scheme.bits)) / group)
    return round(bits / 8)


def prompt_cache_bytes(architecture: Architecture, num_tokens: int) -> int:
    """Return the bytes of the whole blocks that one sequence fills."""
    one = block_bytes(
        num_layers=architecture.num_layers,
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        element_bytes=_ELEMENT_BYTES,
        block_size=BLOCK_SIZE,
    )
    return blocks_for(num_tokens, BLOCK_SIZE) * one
