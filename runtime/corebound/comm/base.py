"""What every provider of collectives offers, and the errors they share."""

from __future__ import annotations

import errno
import os
import re
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import torch

from corebound.errors import CommError, CommTimeoutError, ConfigError, PeerLostError

_FOREVER = timedelta(days=365)
# torch hands gloo's errors on as RuntimeError. What gloo's transport says begins with its place in gloo's source, so no
# other text is taken for it; what the operating system says in it has that system's words.
_OF_TRANSPORT = re.compile(r"gloo/transport/\w+/\w+\.(?:cc|h):\d+\] (?P<said>.*)")
_TIMED_OUT = re.compile(r"Timed out waiting \d+ms for |Connect timeout\b")
_LOST_ERRNOS = (errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ETIMEDOUT)
_LOST = re.compile("|".join(["Connection closed by peer", *(re.escape(os.strerror(code)) for code in _LOST_ERRNOS)]))


@runtime_checkable
class Collectives(Protocol):
    """Collective operations of one group of ranks.

    All members call the same operations in the same order with the same shapes and dtypes. Every operation blocks until
    its result is there, and every member gets identical bits. `timeout_s` None takes the group's default;
    `math.inf` waits as long as the peers live.

    Raises (every operation): PeerLostError when a member died or left, CommTimeoutError after `timeout_s`, CommError
    for a dtype that cannot be handled or members that disagree. A group that raised is broken and must be closed.
    """

    @property
    def name(self) -> str:
        """The provider: `shm`, `hierarchical`, `ccl`, `gloo` or `single`."""

    @property
    def rank(self) -> int:
        """This process's place in the group, from 0."""

    @property
    def size(self) -> int:
        """Number of members."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """The members' ranks in the whole launch, in the order of the group."""

    def all_reduce(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Replace `tensor`, of any shape, by the sum over all members, in place, and return it."""

    def all_gather(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        """Return every member's `tensor`, stacked in group order.

        Shapes: [*shape] -> [size, *shape].
        """

    def broadcast(self, tensor: torch.Tensor, root: int = 0, timeout_s: float | None = None) -> torch.Tensor:
        """Replace `tensor`, of any shape, by that of member `root`, in place, and return it."""

    def barrier(self, timeout_s: float | None = None) -> None:
        """Return when every member has called it."""

    def broadcast_object(self, obj: Any, root: int = 0, timeout_s: float | None = None) -> Any:
        """Return member `root`'s `obj` on every member; it travels as JSON, so tuples arrive as lists."""

    def close(self) -> None:
        """Leave the group and free what it holds. Calling it again does nothing."""


def check_timeout(timeout_s: float) -> float:
    """Return `timeout_s`, seconds, if it is above 0 (infinity included).

    Raises: ConfigError.
    """
    if not timeout_s > 0:
        raise ConfigError(f"timeout of a collective: expected seconds above 0, found {timeout_s!r}")
    return timeout_s


def as_timedelta(timeout_s: float) -> timedelta:
    """Return the duration for torch.distributed, which knows no infinity.

    Raises: ConfigError unless it is above 0.
    """
    check_timeout(timeout_s)
    return timedelta(seconds=min(timeout_s, _FOREVER.total_seconds()))


def check_root(root: int, size: int) -> int:
    """Return `root` if it is a member.

    Raises: CommError.
    """
    if not 0 <= root < size:
        raise CommError(f"broadcast: root must be a rank of the group, 0 to {size - 1}; found {root}")
    return root


def from_torch_error(error: Exception, *, operation: str, rank: int, detail: str = "") -> CommError:
    """Return our error for one that torch.distributed raised, naming the operation and this rank."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    where = f"{operation} on rank {rank}{detail}"
    match = _OF_TRANSPORT.search(text)
    said = match["said"] if match else ""
    if _TIMED_OUT.match(said):
        return CommTimeoutError(f"{where}: {text}", hint="COREBOUND_COMM_TIMEOUT_S sets the limit")
    if "enforce fail" not in text and _LOST.search(said):
        return PeerLostError(f"{where}: a peer is gone: {text}", hint="the first rank that failed says why")
    return CommError(f"{where}: {text}")
