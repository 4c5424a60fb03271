"""The provider over torch's gloo process groups: works between any hosts, for any dtype gloo knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    BarrierOptions,
    BroadcastOptions,
)

from corebound.comm.base import as_timedelta, check_root, from_torch_error
from corebound.comm.objects import broadcast_object
from corebound.errors import CommError


class GlooCollectives:
    """Collectives of a torch.distributed process group. `owns_group` destroys that group on close.

    `group` may also be a bare ProcessGroupGloo, which torch.distributed does not know; then `ranks` names its members.

    Raises (every operation): as `Collectives`; ConfigError for a time that is not above 0 seconds.
    """

    name = "gloo"

    def __init__(
        self,
        group: Any,
        timeout_s: float,
        *,
        owns_group: bool = False,
        ranks: Sequence[int] | None = None,
    ) -> None:
        self.group = group
        self.rank = group.rank()
        self.size = group.size()
        self.ranks: tuple[int, ...] = tuple(dist.get_process_group_ranks(self.group) if ranks is None else ranks)
        self._timeout = as_timedelta(timeout_s)
        self._owns_group = owns_group
        self._closed = False

    def all_reduce(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Replace `tensor`, of any shape, by the sum over all members, in place, and return it."""
        if tensor.numel() == 0:
            return tensor
        options = AllreduceOptions()
        options.timeout = self._limit(timeout_s)
        whole = tensor.contiguous()
        self._wait("all_reduce", whole, lambda: self.group.allreduce([whole], options))
        return _into(tensor, whole)

    def all_gather(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Return every member's `tensor`, stacked in group order. Shapes: [*shape] -> [size, *shape]."""
        gathered = tensor.new_empty((self.size, *tensor.shape))
        if tensor.numel() == 0:
            return gathered
        options = AllgatherOptions()
        options.timeout = self._limit(timeout_s)
        whole = tensor.contiguous()
        parts = list(gathered.unbind(0))
        self._wait("all_gather", whole, lambda: self.group.allgather([parts], [whole], options))
        return gathered

    def broadcast(self, tensor: torch.Tensor, root: int = 0, timeout_s: float | None = None) -> torch.Tensor:
        """Replace `tensor`, of any shape, by that of member `root`, in place, and return it."""
        options = BroadcastOptions()
        options.rootRank = check_root(root, self.size)
        options.timeout = self._limit(timeout_s)
        if tensor.numel() == 0:
            return tensor
        whole = tensor.contiguous()
        self._wait("broadcast", whole, lambda: self.group.broadcast([whole], options))
        return _into(tensor, whole)

    def barrier(self, timeout_s: float | None = None) -> None:
        """Return when every member has called it."""
        options = BarrierOptions()
        options.timeout = self._limit(timeout_s)
        self._wait("barrier", None, lambda: self.group.barrier(options))

    def broadcast_object(self, obj: Any, root: int = 0, timeout_s: float | None = None) -> Any:
        """Return member `root`'s `obj` on every member."""
        return broadcast_object(self, obj, check_root(root, self.size), timeout_s)

    def close(self) -> None:
        """Leave the group; destroy the process group if this object owns it."""
        if self._closed:
            return
        self._closed = True
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group(None if self.group is dist.group.WORLD else self.group)
        # A gloo group that lives until the interpreter ends takes the process down with SIGABRT: its threads still run.
        del self.group

    def _limit(self, timeout_s: float | None) -> timedelta:
        return self._timeout if timeout_s is None else as_timedelta(timeout_s)

    def _wait(self, operation: str, tensor: torch.Tensor | None, start: Callable[[], Any]) -> None:
        if self._closed:
            raise CommError(f"gloo {operation} on rank {self.rank}: the group was closed")
        # torch raises RuntimeError for everything: a lost peer, a timeout, and a dtype that gloo does not know.
        try:
            start().wait()
        except (RuntimeError, ValueError) as error:
            detail = "" if tensor is None else f" ({tensor.nbytes} bytes of {str(tensor.dtype).removeprefix('torch.')})"
            raise from_torch_error(error, operation=f"gloo {operation}", rank=self.rank, detail=detail) from error


def _into(tensor: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    # contiguous() returned the tensor itself unless it had to copy.
    return tensor if whole is tensor or whole.data_ptr() == tensor.data_ptr() else tensor.copy_(whole)
