"""Objects over a tensor broadcast, as JSON: what arrives is data and never code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from corebound.errors import CommError

if TYPE_CHECKING:
    from corebound.comm.base import Collectives

_LENGTH_BYTES = 8
# The first message carries the length and the start of the text, so a short object needs one broadcast only.
_FIRST_BYTES = 4096


def broadcast_object(group: Collectives, obj: Any, root: int, timeout_s: float | None) -> Any:
    """Return member `root`'s `obj` on every member.

    Raises: CommError on every member when `obj` holds anything but dicts, lists, strings, numbers, booleans and None.
    """
    first = torch.zeros(_FIRST_BYTES, dtype=torch.uint8)
    payload = b""
    failure: CommError | None = None
    if group.rank == root:
        try:
            payload = json.dumps(obj).encode()
        except (TypeError, ValueError) as error:
            failure = CommError(f"broadcast_object: rank {root} holds an object that JSON cannot carry: {error}")
        # A length of -1 tells the others, who would otherwise wait until their timeout.
        length = -1 if failure else len(payload)
        head = length.to_bytes(_LENGTH_BYTES, "little", signed=True) + payload[: _FIRST_BYTES - _LENGTH_BYTES]
        first[: len(head)] = _to_tensor(head)
    group.broadcast(first, root, timeout_s)
    if failure:
        raise failure
    data = first.numpy().tobytes()
    length = int.from_bytes(data[:_LENGTH_BYTES], "little", signed=True)
    if length < 0:
        raise CommError(f"broadcast_object: rank {root} could not encode its object")
    text = data[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if length > len(text):
        num_left = length - len(text)
        rest = _to_tensor(payload[-num_left:]) if group.rank == root else torch.empty(num_left, dtype=torch.uint8)
        group.broadcast(rest, root, timeout_s)
        text += rest.numpy().tobytes()
    return json.loads(text)


def _to_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
