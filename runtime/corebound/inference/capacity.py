"""Whether what a caller needs fits into memory; all ranks come to the same answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from corebound.comm.base import Collectives
from corebound.engine.kv_cache import GIB
from corebound.engine.place import local_size
from corebound.errors import HostError
from corebound.inference.configuration import InferenceConfig
from corebound.inference.own_decoder import CannotExpressError
from corebound.topology import read_topology

_KEY_AND_VALUE = 2


def free_bytes(collectives: Collectives) -> int:
    """Return how many bytes every rank can take: the ranks of a machine share what is free. All ranks call it.

    Raises: HostError as `read_topology`; CommError when a rank is gone.
    """
    mine = torch.tensor([read_topology().memory.available_bytes // local_size()], dtype=torch.int64)
    return int(collectives.all_gather(mine).min())


def require_capacity(module: nn.Module, config: InferenceConfig, collectives: Collectives) -> None:
    """Raise HostError when `min_out_tokens` of one sequence do not fit into the memory that is free.

    A configuration that does not say how many layers and heads there are is not checked.
    """
    described: Any = getattr(module, "config", None)
    num_layers = getattr(described, "num_hidden_layers", None)
    num_heads = getattr(described, "num_attention_heads", None)
    hidden_size = getattr(described, "hidden_size", None)
    if not num_layers or not num_heads or not hidden_size:
        return
    head_dim = getattr(described, "head_dim", None) or hidden_size // num_heads
    num_kv_heads = getattr(described, "num_key_value_heads", None) or num_heads
    heads_here = max(1, -(-num_kv_heads // collectives.size))
    bytes_per_token = num_layers * heads_here * head_dim * _KEY_AND_VALUE * config.dtype.itemsize
    bytes_free = free_bytes(collectives)
    needed = bytes_per_token * config.min_out_tokens
    if needed > bytes_free:
        raise HostError(
            f"init_inference: min_out_tokens is {config.min_out_tokens}, but {bytes_free // bytes_per_token} fit: "
            f"{needed / GIB:.2f} GiB of keys and values on each rank, {bytes_free / GIB:.2f} GiB are free",
            hint="use more ranks, or a smaller model",
        )


def require_room_for_copy(module: nn.Module, collectives: Collectives) -> None:
    """Raise CannotExpressError when the weights do not fit into memory a second time. All ranks call it."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}
    bytes_needed, bytes_free = sum(tensors.values()), free_bytes(collectives)
    largest = int(collectives.all_gather(torch.tensor([bytes_needed], dtype=torch.int64)).max())
    if largest > bytes_free:
        raise CannotExpressError(
            f"its copy of the weights takes {largest / GIB:.2f} GiB on each rank, {bytes_free / GIB:.2f} GiB are free"
        )
