"""The all-reduce over hosts in one native call, where the connections between hosts are our own sockets."""

from __future__ import annotations

import ctypes

import torch

from corebound.comm import host_link, shm_ops
from corebound.comm.host_link import HostLink, label_of
from corebound.comm.link_transport import LinkError, TcpTransport, number_of

# A rank's own data waits this much longer for the other hosts than for its own host, and again for the results. So
# whoever sees the late rank itself is the first to say so.
LINK_EXTRA_S = 0.5
LAST_EXTRA_S = 2.5


class HostsSum:
    """The sums of one member of one group: `local` is its handle in shared memory, 0 without one.

    `link` is None for an owner of no slice.
    """

    def __init__(self, local: int, local_rank: int, host: int, num_hosts: int, link: HostLink | None) -> None:
        self._local, self._local_rank = local, local_rank
        self._host, self._num_hosts = host, num_hosts
        self._link = link
        self._function = shm_ops.library().corebound_comm_all_reduce_hosts
        self._calls: dict[tuple[int, torch.dtype, int], shm_ops.HostsCall | None] = {}
        self._room = torch.empty(0, dtype=torch.uint8)

    def all_reduce(self, whole: torch.Tensor, num_slices: int, timeout_s: float) -> bool:
        """Replace the contiguous `whole` by its sum over all members; return False if that takes other steps.

        Shapes: whole any.

        Raises: CommError of the own host's group; LinkError.
        """
        key = (whole.numel(), whole.dtype, num_slices)
        if key not in self._calls:
            self._calls[key] = self._prepare(whole, num_slices)
        call = self._calls[key]
        if call is None:
            return False
        if code := self._function(ctypes.byref(call), whole.data_ptr(), whole.numel(), timeout_s):
            if call.failed_host < 0 or self._link is None:
                raise shm_ops.failure(code)
            raise self._failure(code, call.failed_host)
        return True

    def _failure(self, code: int, host: int) -> LinkError:
        assert self._link is not None
        assert isinstance(self._link.transport, TcpTransport)
        return self._link.transport.failure(code, host)

    def _prepare(self, whole: torch.Tensor, num_slices: int) -> shm_ops.HostsCall | None:
        dtype = shm_ops.SUM_CODES[whole.dtype]
        call = shm_ops.HostsCall(
            local=self._local,
            local_rank=self._local_rank,
            num_slices=num_slices,
            host=self._host,
            num_hosts=self._num_hosts,
            link_extra_s=LINK_EXTRA_S,
            last_extra_s=LAST_EXTRA_S,
            dtype=dtype,
        )
        length = whole.numel()
        if num_slices > 1:
            length = shm_ops.library().corebound_comm_slice_elements(length, dtype, num_slices)
        begin = min(self._local_rank * length, whole.numel())
        own = whole.view(-1)[begin : begin + length]
        if self._link is None or self._local_rank >= num_slices or own.numel() == 0:
            call.num_hosts = 1
            return call
        transport = self._link.transport
        if (
            not isinstance(transport, TcpTransport)
            or not self._link.adds_everywhere(own)
            or own.nbytes > host_link.PIECE_BYTES
        ):
            return None
        call.sockets = transport.sockets
        call.label = number_of(label_of("all_reduce", own))
        num_bytes = (self._num_hosts - 1) * own.nbytes
        if self._room.numel() < num_bytes:
            # Kept between calls: fresh pages would cost more than the arithmetic. Earlier calls point to the old one.
            self._room = torch.empty(num_bytes, dtype=torch.uint8)
            self._calls.clear()
        call.room = self._room.data_ptr()
        return call
