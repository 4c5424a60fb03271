"""What a checkpoint whose weights are quantized or arranged already can be loaded as. No torch."""

from __future__ import annotations

from corebound.errors import ConfigError
from corebound.models.description import ModelDescription
from corebound.quantization.scheme import Scheme, is_scheme, parse_scheme


def scheme_to_apply(description: ModelDescription, dtype: str) -> Scheme | None:
    """Return the scheme by which plain weights are to be quantized while they are read, if any.

    Raises: ConfigError for a scheme that is none, and for a dtype that weights cannot have which are stored in another.
    """
    scheme = parse_scheme(dtype) if is_scheme(dtype) else None
    shards, packed = description.shards, description.packed
    if shards is not None:
        if scheme is None and dtype == "bfloat16":
            return None
        if scheme is None or shards.weights.split()[-1] != scheme.name:
            raise ConfigError(
                f"dtype {dtype}: {shards.path} was written with weights as {shards.weights}",
                hint="leave out --dtype to compute with the weights as they are, or use the checkpoint it was made of",
            )
        return None
    if packed is None or scheme is None:
        return scheme
    if scheme != packed.scheme:
        raise ConfigError(
            f"dtype {dtype}: the weights of {description.name} are {packed.name} and cannot be {scheme.name} as well",
            hint="leave out --dtype to compute with the weights as they are, or use the unquantised checkpoint",
        )
    return None


def weights_name(description: ModelDescription, dtype: str) -> str:
    """Return what the matrices are once they are loaded with a dtype that scheme_to_apply lets through."""
    if description.shards is not None:
        return description.shards.weights
    if description.packed is not None and (dtype == "bfloat16" or is_scheme(dtype)):
        return description.packed.name
    return dtype
