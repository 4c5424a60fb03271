"""The shared-memory provider: ranks of one machine, microseconds instead of gloo's hundreds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from corebound.comm import shm_handshake, shm_ops
from corebound.comm.base import check_root, check_timeout
from corebound.comm.gloo import GlooCollectives
from corebound.comm.objects import broadcast_object
from corebound.comm.shm_handshake import SegmentOptions
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)
_DEFAULT = -1.0  # the native group's own timeout


class ShmCollectives:
    """Collectives through shared memory. `gloo`, over the same ranks, serves what shared memory cannot.

    Raises (every operation): as `Collectives`; ConfigError for a time that is not above 0 seconds.
    """

    name = "shm"

    def __init__(
        self, gloo: GlooCollectives, job_id: str, timeout_s: float, options: SegmentOptions | None = None
    ) -> None:
        shm_ops.load()
        self.rank = gloo.rank
        self.size = gloo.size
        self.ranks: tuple[int, ...] = gloo.ranks
        self._gloo = gloo
        self._told_unsupported: set[torch.dtype] = set()
        self.handle = shm_handshake.connect(gloo, job_id, timeout_s, options or SegmentOptions())
        self.details = shm_handshake.describe(self.handle)
        # Looked up once: these calls are the hot path.
        self._all_reduce: Callable[..., None] = torch.ops.corebound.shm_all_reduce_.default
        self._all_gather: Callable[..., torch.Tensor] = torch.ops.corebound.shm_all_gather.default
        self._broadcast: Callable[..., None] = torch.ops.corebound.shm_broadcast_.default
        self._barrier: Callable[..., None] = torch.ops.corebound.shm_barrier.default

    def all_reduce(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Replace `tensor`, of any shape, by the sum over all members, in place, and return it.

        A dtype other than float32, bfloat16, float16 and int32 goes through gloo, with one logged line.
        """
        try:
            self._all_reduce(tensor, self.handle, _DEFAULT if timeout_s is None else check_timeout(timeout_s))
        except RuntimeError as error:
            code, translated = shm_ops.from_operator(error)
            if code != shm_ops.UNSUPPORTED:
                raise translated from None
            return self._sum_by_gloo(tensor, timeout_s)
        return tensor

    def all_gather(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Return every member's `tensor`, stacked in group order. Shapes: [*shape] -> [size, *shape]."""
        limit_s = _DEFAULT if timeout_s is None else check_timeout(timeout_s)
        try:
            return self._all_gather(tensor, self.handle, self.size, limit_s)
        except RuntimeError as error:
            _reraise(error)

    def broadcast(self, tensor: torch.Tensor, root: int = 0, timeout_s: float | None = None) -> torch.Tensor:
        """Replace `tensor`, of any shape, by that of member `root`, in place, and return it."""
        limit_s = _DEFAULT if timeout_s is None else check_timeout(timeout_s)
        try:
            self._broadcast(tensor, self.handle, check_root(root, self.size), limit_s)
        except RuntimeError as error:
            _reraise(error)
        return tensor

    def barrier(self, timeout_s: float | None = None) -> None:
        """Return when every member has called it."""
        try:
            self._barrier(self.handle, _DEFAULT if timeout_s is None else check_timeout(timeout_s))
        except RuntimeError as error:
            _reraise(error)

    def broadcast_object(self, obj: Any, root: int = 0, timeout_s: float | None = None) -> Any:
        """Return member `root`'s `obj` on every member."""
        return broadcast_object(self, obj, check_root(root, self.size), timeout_s)

    def set_choice(self, *, two_shot: bool, streaming: bool) -> None:
        """Fix algorithm and store kind in place of what the probe found; every member must do the same.

        Raises: CommError when the group is closed.
        """
        if code := shm_ops.library().corebound_comm_set_choice(self.handle, two_shot, streaming):
            raise shm_ops.failure(code)
        self.details = shm_handshake.describe(self.handle)

    def close(self) -> None:
        """Leave the group: peers that still wait for this rank get PeerLostError."""
        shm_ops.library().corebound_comm_close(self.handle)
        self._gloo.close()

    def _sum_by_gloo(self, tensor: torch.Tensor, timeout_s: float | None) -> torch.Tensor:
        if tensor.dtype not in self._told_unsupported:
            self._told_unsupported.add(tensor.dtype)
            _LOGGER.warning("all_reduce of %s goes through gloo: shared memory does not sum it", tensor.dtype)
        return self._gloo.all_reduce(tensor, timeout_s)


def _reraise(error: RuntimeError) -> NoReturn:
    raise shm_ops.from_operator(error)[1] from None
