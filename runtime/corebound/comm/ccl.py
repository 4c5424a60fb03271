"""The provider over oneCCL, for groups on one host or several."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from corebound import native_ccl
from corebound.comm import shm_handshake, shm_ops
from corebound.comm.base import check_root, check_timeout
from corebound.comm.ccl_group import SUM_CODES, CclError, CclGroup
from corebound.comm.gloo import GlooCollectives
from corebound.comm.objects import broadcast_object
from corebound.errors import CommError
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)


def why_not(gloo: GlooCollectives) -> native_ccl.CclUnavailableError | None:
    """Return why oneCCL cannot serve the members, or None; every member calls it and gets the same answer."""
    card: dict[str, Any] = {"error": "", "hint": None, "version": ""}
    try:
        card["version"] = native_ccl.library().corebound_ccl_version().decode()
    except native_ccl.CclUnavailableError as error:
        card |= {"error": error.message, "hint": error.hint}
    cards = shm_handshake.exchange(gloo, card)
    for rank, other in zip(gloo.ranks, cards, strict=True):
        if other["error"]:
            return native_ccl.CclUnavailableError(f"rank {rank}: {other['error']}", hint=other["hint"])
    versions = sorted({other["version"] for other in cards})
    if len(versions) > 1:
        return native_ccl.CclUnavailableError(
            f"the ranks have oneCCL {' and '.join(versions)}", hint="install the same version on every host"
        )
    return None


class CclCollectives:
    """Collectives of oneCCL. `gloo`, over the same ranks, serves the dtypes that oneCCL does not sum.

    Raises (on construction, on all members alike): CommError when oneCCL is missing somewhere or a member stays away.
    """

    name = "ccl"

    def __init__(self, gloo: GlooCollectives, timeout_s: float) -> None:
        self.rank = gloo.rank
        self.size = gloo.size
        self.ranks: tuple[int, ...] = gloo.ranks
        self._gloo = gloo
        self._timeout_s = timeout_s
        self._told_unsupported: set[torch.dtype] = set()
        self._broken: tuple[int, str] | None = None
        self._closed = False
        reason = why_not(gloo)
        if reason:
            raise reason
        store = PrefixStore(f"corebound/ccl/{gloo.broadcast_object(secrets.token_hex(8))}", _get_default_store())
        cards = shm_handshake.exchange(gloo, {})
        names = [f"rank {rank} (host {card['host']})" for rank, card in zip(self.ranks, cards, strict=True)]
        self._group = CclGroup(store, self.rank, names, timeout_s)

    def all_reduce(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Replace `tensor`, of any shape, by the sum over all members, in place, and return it.

        A dtype other than float32, bfloat16, float16, int32 and int8 goes through gloo, with one logged line.
        """
        if tensor.dtype not in SUM_CODES:
            if tensor.dtype not in self._told_unsupported:
                self._told_unsupported.add(tensor.dtype)
                _LOGGER.warning("all_reduce of %s goes through gloo: oneCCL does not sum it here", tensor.dtype)
            return self._gloo.all_reduce(tensor, timeout_s)
        if tensor.numel() == 0:
            return tensor
        whole = tensor.contiguous()
        self._run("all_reduce", whole, timeout_s, lambda limit_s: self._group.all_reduce(whole, limit_s))
        return tensor if whole.data_ptr() == tensor.data_ptr() else tensor.copy_(whole)

    def all_gather(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Return every member's `tensor`, stacked in group order. Shapes: [*shape] -> [size, *shape]."""
        gathered = tensor.new_empty((self.size, *tensor.shape))
        if tensor.numel() == 0:
            return gathered
        whole = tensor.contiguous()
        self._run("all_gather", whole, timeout_s, lambda limit_s: self._group.all_gather(whole, gathered, limit_s))
        return gathered

    def broadcast(self, tensor: torch.Tensor, root: int = 0, timeout_s: float | None = None) -> torch.Tensor:
        """Replace `tensor`, of any shape, by that of member `root`, in place, and return it."""
        check_root(root, self.size)
        if tensor.numel() == 0:
            return tensor
        whole = tensor.contiguous()
        self._run("broadcast", whole, timeout_s, lambda limit_s: self._group.broadcast(whole, root, limit_s))
        return tensor if whole.data_ptr() == tensor.data_ptr() else tensor.copy_(whole)

    def barrier(self, timeout_s: float | None = None) -> None:
        """Return when every member has called it."""
        self._run("barrier", None, timeout_s, self._group.barrier)

    def broadcast_object(self, obj: Any, root: int = 0, timeout_s: float | None = None) -> Any:
        """Return member `root`'s `obj` on every member."""
        return broadcast_object(self, obj, check_root(root, self.size), timeout_s)

    def close(self) -> None:
        """Leave the group."""
        if self._closed:
            return
        self._closed = True
        self._group.close()
        self._gloo.close()

    def _run(
        self,
        operation: str,
        tensor: torch.Tensor | None,
        timeout_s: float | None,
        action: Callable[[float], None],
    ) -> None:
        rank = self.ranks[self.rank]
        if self._closed:
            raise CommError(f"ccl {operation} on rank {rank}: the group is closed")
        if self._broken:
            raise shm_ops.error_for(*self._broken)
        limit_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        try:
            action(limit_s)
        except CclError as error:
            what = "" if tensor is None else f" of {tensor.nbytes} bytes of {str(tensor.dtype).removeprefix('torch.')}"
            members = ",".join(map(str, self.ranks))
            text = error.message
            if error.code == shm_ops.TIMED_OUT:
                text = f"not all members came within {limit_s:g} s"
            elif error.code == shm_ops.PEER_LOST:
                text = f"rank {self.ranks[error.culprit]} is gone, or gave up"
            code = error.code if error.code in (shm_ops.PEER_LOST, shm_ops.TIMED_OUT) else shm_ops.MISUSE
            self._broken = (code, f"ccl {operation}{what} on rank {rank}, group of ranks {members}: {text}")
            # The others must not wait for a member that has given up.
            self._group.close()
            raise shm_ops.error_for(*self._broken) from None
