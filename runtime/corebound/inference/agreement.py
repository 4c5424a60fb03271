"""Keeps the ranks of one model together: equal inputs, equal random numbers."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from corebound.comm.base import Collectives
from corebound.errors import RequestError

_DIGEST_BYTES = 8


def require_same_inputs(what: str, collectives: Collectives, *arguments: Any) -> None:
    """Raise RequestError, on every rank, when the ranks call `what` with different tensors or numbers.

    Settings that are objects with a to_dict(), such as a GenerationConfig, are compared by it. Values that are none of
    these, such as a streamer, are not compared.
    """
    if collectives.size == 1:
        return
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for piece in _pieces(arguments):
        digest.update(piece)
    mine = torch.frombuffer(bytearray(digest.digest()), dtype=torch.int32)
    everyone = collectives.all_gather(mine)
    others = [
        str(collectives.ranks[place]) for place in range(collectives.size) if not everyone[place].equal(everyone[0])
    ]
    if others:
        raise RequestError(
            f"{what}: ranks that share a model need the same inputs; those of rank {collectives.ranks[0]} are not "
            f"those of rank {', '.join(others)}",
            hint="give every rank the same prompts; tp_size=1 lets each rank run a whole model on its own prompts",
        )


def share_random_state(collectives: Collectives) -> None:
    """Give every rank the state of the first one's default generator, so that they draw the same tokens."""
    if collectives.size > 1:
        state = torch.get_rng_state()
        # Collectives move whole words, whatever they mean.
        words = torch.zeros(-(-state.numel() // 4), dtype=torch.int32)
        words.view(torch.uint8)[: state.numel()] = state
        collectives.broadcast(words)
        torch.set_rng_state(words.view(torch.uint8)[: state.numel()].clone())


def keep_together(module: nn.Module, collectives: Collectives) -> None:
    """Make the module's generate() compare its inputs over the ranks and share random numbers before it starts.

    Raises: RequestError from that generate() where inputs differ, or for `max_time`, by which clocks would decide.
    """
    generate = getattr(module, "generate", None)
    if collectives.size == 1 or generate is None:
        return

    names = tuple(inspect.signature(generate).parameters)

    @functools.wraps(generate)
    def together(*args: Any, **kwargs: Any) -> Any:
        # By name, however they came: an argument without one is generate's to refuse.
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        own = getattr(module, "generation_config", None)
        if _max_time(given, own):
            raise RequestError(
                "generate: max_time on several ranks: their clocks differ, so they would stop at different tokens",
                hint="limit max_new_tokens instead",
            )
        require_same_inputs("generate", collectives, given, args[len(names) :], own)
        share_random_state(collectives)
        return generate(*args, **kwargs)

    # On this object alone: its class serves other models too.
    module.generate = together  # type: ignore[assignment]  # a Module's attributes count as tensors


def _max_time(given: Mapping[str, Any], own: Any) -> Any:
    """Return the time limit of a call: its keyword, else that of the object it was given, else the model's."""
    if "max_time" in given:
        return given["max_time"]
    limits = [getattr(config, "max_time", None) for config in (given.get("generation_config"), own)]
    return next((limit for limit in limits if limit is not None), None)


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _pieces(value[key])
    elif isinstance(value, list | tuple):
        yield f"{len(value)} values".encode()
        for item in value:
            yield from _pieces(item)
    elif value is None or isinstance(value, bool | int | float | str):
        yield repr(value).encode()
    elif callable(getattr(value, "to_dict", None)):
        yield type(value).__name__.encode()
        yield from _pieces(value.to_dict())
