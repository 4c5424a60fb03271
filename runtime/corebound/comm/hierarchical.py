"""The provider for several hosts with several ranks each: shared memory inside, one crossing of the network between.

An all-reduce cuts the data into slices. The ranks of a host sum each slice in shared memory, its owner exchanges it
with the owners of the same slice on the other hosts, and the results are gathered in shared memory. Sums run in fp32
and are rounded to the dtype once inside the host and once between hosts, whatever the size and the number of slices,
so an element's bits depend on the ranks' values alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from corebound.comm import hierarchical_op, shm_ops
from corebound.comm.base import check_root, check_timeout
from corebound.comm.faults import GRACE_S, SECOND_HAND_GRACE_S, FaultBoard, link_note, shm_note
from corebound.comm.gloo import GlooCollectives
from corebound.comm.host_link import HostLink
from corebound.comm.hosts import Hosts
from corebound.comm.hosts_sum import LAST_EXTRA_S, LINK_EXTRA_S, HostsSum
from corebound.comm.link_transport import LinkError
from corebound.comm.objects import broadcast_object
from corebound.comm.shm import ShmCollectives
from corebound.errors import CommError
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The groups that one member belongs to. `local` is None alone on a host, `link` None for an owner of no slice.

    `names` are what messages call the hosts, `carrier` is what carries data between them, and `reason` why.
    """

    hosts: Hosts
    names: tuple[str, ...]
    local: ShmCollectives | None
    link: HostLink | None
    board: FaultBoard
    carrier: str
    reason: str


class _Limit:
    """How long the steps of one operation that began now may wait: each a little longer than the one before.

    So whoever sees the late rank itself is the first to say so.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._end_s = time.monotonic() + limit_s

    def first(self) -> float:
        return self._limit_s

    def link(self) -> float:
        return self._left() + LINK_EXTRA_S

    def last(self) -> float:
        return self._left() + LAST_EXTRA_S

    def _left(self) -> float:
        return math.inf if math.isinf(self._end_s) else round(max(self._end_s - time.monotonic(), 0.0), 3)


class HierarchicalCollectives:
    """Collectives of ranks on several hosts. `gloo`, over all ranks, serves the dtypes that are not summed here.

    Raises (every operation): as `Collectives`; ConfigError for a time that is not above 0 seconds.
    """

    name = "hierarchical"

    def __init__(self, gloo: GlooCollectives, levels: Levels, timeout_s: float) -> None:
        self.rank = gloo.rank
        self.size = gloo.size
        self.ranks: tuple[int, ...] = gloo.ranks
        self.hosts = levels.hosts
        self.host = next(number for number, members in enumerate(levels.hosts) if gloo.rank in members)
        self.local_rank = levels.hosts[self.host].index(gloo.rank)
        self.max_slices = min(map(len, levels.hosts))
        self.rules: list[tuple[float, int]] = [(math.inf, self.max_slices)]
        self.carrier = levels.carrier
        self.carrier_reason = levels.reason
        self._gloo = gloo
        self._local = levels.local
        self._link = levels.link
        self._board = levels.board
        self._timeout_s = timeout_s
        self._told_unsupported: set[torch.dtype] = set()
        self._broken: tuple[int, str] | None = None
        self._closed = False
        self._host_of = {self.ranks[place]: host for host, members in enumerate(levels.hosts) for place in members}
        self._name_of = {rank: levels.names[host] for rank, host in self._host_of.items()}
        self._sum = HostsSum(
            self._local.handle if self._local else 0, self.local_rank, self.host, len(self.hosts), self._link
        )
        self.handle = hierarchical_op.register(self)

    def all_reduce(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Replace `tensor`, of any shape, by the sum over all members, in place, and return it.

        A dtype other than float32, bfloat16, float16 and int32 goes through gloo, with one logged line.
        """
        if torch.compiler.is_compiling():
            torch.ops.corebound.hierarchical_all_reduce_(tensor, self.handle, timeout_s)
            return tensor
        if tensor.dtype not in shm_ops.SUM_CODES:
            return self._sum_by_gloo(tensor, timeout_s)
        if tensor.numel() == 0:
            return tensor
        whole = tensor.contiguous()
        with self._operation("all_reduce", whole, timeout_s) as limit:
            if not self._sum.all_reduce(whole, self.num_slices(whole.nbytes), limit.first()):
                self._all_reduce(whole, limit)
        return tensor if whole.data_ptr() == tensor.data_ptr() else tensor.copy_(whole)

    def all_gather(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Return every member's `tensor`, stacked in group order. Shapes: [*shape] -> [size, *shape]."""
        gathered = tensor.new_empty((self.size, *tensor.shape))
        if tensor.numel() == 0:
            return gathered
        own = tensor.contiguous().view(-1)
        with self._operation("all_gather", own, timeout_s) as limit:
            if all(len(members) == self.max_slices for members in self.hosts):
                rows = self._gather_evenly(own, limit)
            else:
                rows = self._gather_by_leaders(own, limit)
        for host, members in enumerate(self.hosts):
            for local_rank, place in enumerate(members):
                gathered[place].view(-1).copy_(rows[host, local_rank])
        return gathered

    def broadcast(self, tensor: torch.Tensor, root: int = 0, timeout_s: float | None = None) -> torch.Tensor:
        """Replace `tensor`, of any shape, by that of member `root`, in place, and return it."""
        check_root(root, self.size)
        if tensor.numel() == 0:
            return tensor
        whole = tensor.contiguous()
        with self._operation("broadcast", whole, timeout_s) as limit:
            self._broadcast(whole, root, limit)
        return tensor if whole.data_ptr() == tensor.data_ptr() else tensor.copy_(whole)

    def barrier(self, timeout_s: float | None = None) -> None:
        """Return when every member has called it."""
        with self._operation("barrier", None, timeout_s) as limit:
            if self._local:
                self._local.barrier(limit.first())
            if self._link and self.local_rank == 0:
                self._link.barrier(limit.link())
            if self._local:
                self._local.barrier(limit.last())

    def broadcast_object(self, obj: Any, root: int = 0, timeout_s: float | None = None) -> Any:
        """Return member `root`'s `obj` on every member."""
        return broadcast_object(self, obj, check_root(root, self.size), timeout_s)

    def num_slices(self, num_bytes: int) -> int:
        """Return into how many slices data of that size is cut, which is how many ranks of a host use the network."""
        return next(num_slices for max_bytes, num_slices in self.rules if num_bytes <= max_bytes)

    def close(self) -> None:
        """Leave the group: peers that still wait for this rank get PeerLostError."""
        if self._closed:
            return
        self._closed = True
        if self._link:
            self._link.close()
        if self._local:
            self._local.close()
        self._gloo.close()

    def _all_reduce(self, whole: torch.Tensor, limit: _Limit) -> None:
        num_elements, dtype = whole.numel(), shm_ops.SUM_CODES[whole.dtype]
        num_slices = self.num_slices(whole.nbytes)
        if self._local:
            self._native("reduce_slices", whole, num_slices, limit.first())
        if self._link and self.local_rank < num_slices:
            length = num_elements
            if num_slices > 1:
                length = shm_ops.library().corebound_comm_slice_elements(num_elements, dtype, num_slices)
            own = whole.view(-1)[self.local_rank * length : (self.local_rank + 1) * length]
            if own.numel():
                self._link.all_reduce(own, limit.link())
        if self._local:
            self._native("gather_slices", whole, num_slices, limit.last())

    def _native(self, function: str, whole: torch.Tensor, num_slices: int, timeout_s: float) -> None:
        assert self._local
        code = getattr(shm_ops.library(), f"corebound_comm_{function}")(
            self._local.handle,
            whole.data_ptr(),
            whole.numel(),
            shm_ops.SUM_CODES[whole.dtype],
            num_slices,
            timeout_s,
        )
        if code:
            raise shm_ops.failure(code)

    def _gather_evenly(self, own: torch.Tensor, limit: _Limit) -> torch.Tensor:
        """Return [hosts, ranks of a host, elements]: each rank fetches its counterparts' data, then shares it."""
        rows = self._link.all_gather(own, limit.link()) if self._link else own.unsqueeze(0)
        if not self._local:
            return rows.unsqueeze(1)
        return self._local.all_gather(rows, limit.last()).transpose(0, 1)

    def _gather_by_leaders(self, own: torch.Tensor, limit: _Limit) -> torch.Tensor:
        """Return [hosts, most ranks of a host, elements]: one rank of each host exchanges the data of all its ranks."""
        members = len(self.hosts[self.host])
        block = own.new_zeros((max(map(len, self.hosts)), own.numel()))
        block[:members] = self._local.all_gather(own, limit.first()) if self._local else own
        if self._link and self.local_rank == 0:
            rows = self._link.all_gather(block, limit.link())
        else:
            rows = block.new_empty((len(self.hosts), *block.shape))
        return self._local.broadcast(rows, 0, limit.last()) if self._local else rows

    def _broadcast(self, whole: torch.Tensor, root: int, limit: _Limit) -> None:
        root_host = self._host_of[self.ranks[root]]
        root_local = self.hosts[root_host].index(root)
        # The root itself sends to the other hosts if it has counterparts there; otherwise its host's first rank does.
        carrier = root_local if root_local < self.max_slices else 0
        if self._local and self.host == root_host:
            self._local.broadcast(whole, root_local, limit.first())
        if self._link and self.local_rank == carrier:
            self._link.broadcast(whole, root_host, limit.link())
        if self._local and self.host != root_host:
            self._local.broadcast(whole, carrier, limit.last())

    @contextmanager
    def _operation(self, operation: str, tensor: torch.Tensor | None, timeout_s: float | None) -> Iterator[_Limit]:
        """Yield the limits of the steps; turn what fails into one account for all members."""
        if self._closed:
            raise CommError(f"hierarchical {operation} on rank {self.ranks[self.rank]}: the group is closed")
        if self._broken:
            raise shm_ops.error_for(*self._broken)
        limit_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        try:
            yield _Limit(limit_s)
        except CommError as error:
            what = "" if tensor is None else f" of {tensor.nbytes} bytes of {str(tensor.dtype).removeprefix('torch.')}"
            self._broken = self._explain(error, operation, what, limit_s)
            raise shm_ops.error_for(*self._broken) from None

    def _explain(self, error: CommError, operation: str, what: str, limit_s: float) -> tuple[int, str]:
        """Abort both levels, so that all members learn of it; return the code and text of what went wrong."""
        me, call = self.ranks[self.rank], operation + what
        _LOGGER.debug("hierarchical %s on rank %d: %s", call, me, error)
        if isinstance(error, LinkError):
            peer = self.ranks[self.hosts[error.host][self.local_rank]]
            note = link_note(error, me, peer, call, limit_s, self._name_of)
        else:
            note = shm_note(error, me, call, self._name_of)
        if note.certain:
            # The account comes first: whoever is woken by the abort finds it.
            self._board.publish(me, note)
        if self._local:
            shm_ops.library().corebound_comm_abandon(self._local.handle, *(note.suspects or (me,)))
        if self._link:
            self._link.close()
        account = note
        if not note.certain:
            second_hand = note.code == shm_ops.ELSEWHERE
            account = self._board.settle(note, SECOND_HAND_GRACE_S if second_hand else GRACE_S)
            self._board.publish(me, replace(account, certain=True))
        by = "" if account.rank == me else f", says rank {account.rank} (host {self._name_of[account.rank]})"
        code = shm_ops.PEER_LOST if account.code == shm_ops.ELSEWHERE else account.code
        return code, f"hierarchical {operation} on rank {me} (host {self._name_of[me]}): {account.text}{by}"

    def _sum_by_gloo(self, tensor: torch.Tensor, timeout_s: float | None) -> torch.Tensor:
        if tensor.dtype not in self._told_unsupported:
            self._told_unsupported.add(tensor.dtype)
            _LOGGER.warning("all_reduce of %s goes through gloo: shared memory does not sum it", tensor.dtype)
        return self._gloo.all_reduce(tensor, timeout_s)
