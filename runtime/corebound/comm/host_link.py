"""Between hosts: one member of each exchanges tensors with its counterparts, directly, over gloo or oneCCL.

Their own all-reduce rounds at every hop and in an order that depends on the place in the message. Here every host's
part arrives as it is and is added in the order of the hosts, in fp32, rounded once, whatever carries it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from corebound.comm import shm_ops
from corebound.comm.link_transport import LinkTransport

MIB = 1024 * 1024
# Longer slices go in pieces, each added while the next is on its way, which bounds what a link holds beside the data.
# Every piece costs a handshake between threads that may have to wait for a processor, so pieces are not small.
PIECE_BYTES = 8 * MIB
# With three hosts or more, longer slices are added by one host per part and returned: fewer bytes, one step more.
OWNERS_FROM_BYTES = 64 * 1024
_LINE_BYTES = 64


class HostLink:
    """The connections of one member to its counterparts; `host` is its own place among `num_hosts`.

    `alike` says that all hosts add in the same way: then each may add for itself and hold the same bits. Every member
    makes the same calls.

    Raises (every operation): LinkError naming the host that did not answer. The link is then to be closed.
    """

    def __init__(self, transport: LinkTransport, host: int, num_hosts: int, *, alike: bool) -> None:
        self.transport = transport
        self.host = host
        self.num_hosts = num_hosts
        self._others = [other for other in range(num_hosts) if other != host]
        self._alike = alike
        self._workspace = torch.empty(0, dtype=torch.uint8)

    def all_reduce(self, x: torch.Tensor, timeout_s: float) -> None:
        """Replace the contiguous vector `x` by its sum over the hosts. Shapes: x [elements]."""
        label = label_of("all_reduce", x)
        if self.adds_everywhere(x):
            self._sum_everywhere(x, label, timeout_s)
        else:
            self._sum_by_owners(x, label, timeout_s)

    def adds_everywhere(self, x: torch.Tensor) -> bool:
        """Return whether each host adds all of `x`, of any shape, itself, not a part that it sends to the others."""
        return self._alike and (self.num_hosts == 2 or x.nbytes < OWNERS_FROM_BYTES)

    def all_gather(self, x: torch.Tensor, timeout_s: float) -> torch.Tensor:
        """Return the contiguous `x` of every host, stacked. Shapes: [*shape] -> [num_hosts, *shape]."""
        gathered = x.new_empty((self.num_hosts, *x.shape))
        gathered[self.host] = x
        label = label_of("all_gather", x)
        receives = [(other, gathered[other].view(-1)) for other in self._others]
        self.transport.wait(
            self.transport.start([(other, x.view(-1)) for other in self._others], receives, label), timeout_s
        )
        return gathered

    def broadcast(self, x: torch.Tensor, root: int, timeout_s: float) -> None:
        """Replace the contiguous `x`, of any shape, by that of host `root`, which sends it to each host once."""
        label = label_of("broadcast", x)
        data = x.view(-1)
        sends = [(other, data) for other in self._others] if self.host == root else []
        receives = [] if self.host == root else [(root, data)]
        self.transport.wait(self.transport.start(sends, receives, label), timeout_s)

    def barrier(self, timeout_s: float) -> None:
        """Return when every host has called it."""
        self.all_gather(torch.zeros(1, dtype=torch.uint8), timeout_s)

    def close(self) -> None:
        """Close the connections, which the counterparts notice at once."""
        self.transport.close()

    def _sum_everywhere(self, x: torch.Tensor, label: str, timeout_s: float) -> None:
        pieces = x.split(max(1, PIECE_BYTES // x.itemsize))
        num_rooms = min(2, len(pieces))
        num_bytes = num_rooms * len(self._others) * pieces[0].nbytes
        room = self._room(num_bytes).view(x.dtype).view(num_rooms, len(self._others), -1)

        def start(number: int) -> tuple[Any, torch.Tensor]:
            piece = pieces[number]
            rows = room[number % num_rooms, :, : piece.numel()]
            works = self.transport.start(
                [(other, piece) for other in self._others], list(zip(self._others, rows.unbind(0), strict=True)), label
            )
            return works, rows

        works, rows = start(0)
        for number, piece in enumerate(pieces):
            ahead = start(number + 1) if number + 1 < len(pieces) else None
            self.transport.wait(works, timeout_s)
            self._add(piece, rows)
            if ahead:
                works, rows = ahead

    def _sum_by_owners(self, x: torch.Tensor, label: str, timeout_s: float) -> None:
        share = -(-x.numel() // self.num_hosts)
        line = _LINE_BYTES // x.itemsize
        share = -(-share // line) * line
        parts = [x[host * share : (host + 1) * share] for host in range(self.num_hosts)]
        own = parts[self.host]
        theirs = [(other, parts[other]) for other in self._others if parts[other].numel()]
        rows = self._room(len(self._others) * own.nbytes).view(x.dtype).view(len(self._others), -1)
        to_add = list(zip(self._others, rows.unbind(0), strict=True)) if own.numel() else []
        self.transport.wait(self.transport.start(theirs, to_add, label), timeout_s)
        sums = []
        if own.numel():
            self._add(own, rows)
            sums = [(other, own) for other in self._others]
        self.transport.wait(self.transport.start(sums, theirs, label), timeout_s)

    def _add(self, own: torch.Tensor, rows: torch.Tensor) -> None:
        """Replace `own` by the sum of all hosts' parts, in the order of the hosts; `rows` are the others'."""
        pointers = [row.data_ptr() for row in rows.unbind(0)]
        pointers.insert(self.host, own.data_ptr())
        sources = (ctypes.c_void_p * self.num_hosts)(*pointers)
        code = shm_ops.library().corebound_comm_sum(
            own.data_ptr(), sources, self.num_hosts, own.numel(), shm_ops.SUM_CODES[own.dtype]
        )
        if code:
            raise shm_ops.failure(code)

    def _room(self, num_bytes: int) -> torch.Tensor:
        # Kept between calls: fresh pages would cost more than the arithmetic.
        if self._workspace.numel() < num_bytes:
            self._workspace = torch.empty(num_bytes, dtype=torch.uint8)
        return self._workspace[:num_bytes]


def label_of(operation: str, x: torch.Tensor) -> str:
    """Return what tells a call from others: messages of calls that differ must not be taken for one another.

    Shapes: x any; the number of elements is part of the label.
    """
    return f"{operation}/{x.numel()}/{x.dtype}"
