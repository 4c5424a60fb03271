"""Reserves the rendezvous port, so that two launches that start together cannot meet on one."""

from __future__ import annotations

import errno
import socket
from types import TracebackType

from corebound.errors import LaunchError
from corebound.launcher.spec import DEFAULT_MASTER_PORT
from corebound.logs import get_logger

_log = get_logger(__name__)


class PortReservation:
    """Holds a TCP port against other launches while rank 0 can still listen on it. Use as a context manager.

    The socket is bound exclusively, then marked SO_REUSEADDR, and never listens: Linux lets a listener in beside it
    that sets SO_REUSEADDR as well (every rendezvous server does), but no second reservation.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.port: int = sock.getsockname()[1]

    def __enter__(self) -> PortReservation:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()


def reserve_port(asked: int | None) -> PortReservation:
    """Return the port that was asked for, or the default one, or any free one when the default is busy.

    Raises: LaunchError when the port that was asked for is busy or not permitted.
    """
    try:
        return PortReservation(_bind(DEFAULT_MASTER_PORT if asked is None else asked, reuse=asked is not None))
    except OSError as error:
        if asked is not None:
            busy = error.errno == errno.EADDRINUSE
            raise LaunchError(
                f"--master_port {asked}: {'the port is in use on this machine' if busy else error.strerror}",
                hint="choose another port, or leave out --master_port to have a free one chosen",
            ) from error
    reservation = PortReservation(_bind(0, reuse=False))
    _log.info("port %d is busy: the ranks meet on port %d", DEFAULT_MASTER_PORT, reservation.port)
    return reservation


def _bind(port: int, *, reuse: bool) -> socket.socket:
    """Return a bound socket. With `reuse`, closing connections of an earlier job do not count as busy."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if reuse:
            _probe_listen(port)
        else:
            sock.bind(("", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse:
            sock.bind(("", port))
    except OSError:
        sock.close()
        raise
    return sock


def _probe_listen(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))
        probe.listen(1)
