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

    The port itself is bound but never listened on: Linux lets a listener in beside such a socket when both set
    SO_REUSEADDR, as every rendezvous server does. What keeps a second launch away is an abstract socket named after
    the port, which belongs to the same network namespace and vanishes with the process.
    """

    def __init__(self, port: int) -> None:
        self._lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if port:
                self._lock_port(port)
                _probe_listen(port)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("", port))
            self.port: int = self._socket.getsockname()[1]
            if not port:
                self._lock_port(self.port)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()
        self._lock.close()

    def __enter__(self) -> PortReservation:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _lock_port(self, port: int) -> None:
        self._lock.bind(f"\0corebound.port.{port}")


def reserve_port(asked: int | None) -> PortReservation:
    """Return the port that was asked for, or the default one, or any free one when the default is busy.

    Raises: LaunchError when the port that was asked for is busy, or any port is refused for another reason.
    """
    try:
        return PortReservation(asked or DEFAULT_MASTER_PORT)
    except OSError as error:
        busy = error.errno == errno.EADDRINUSE
        if asked is None and not busy:
            raise LaunchError(f"port {DEFAULT_MASTER_PORT}: {error.strerror}") from error
        if asked is not None:
            raise LaunchError(
                f"--master_port {asked}: {'the port is in use on this machine' if busy else error.strerror}",
                hint="choose another port, or leave out --master_port to have a free one chosen",
            ) from error
    reservation = PortReservation(0)
    _log.debug("port %d is busy: the ranks meet on port %d", DEFAULT_MASTER_PORT, reservation.port)
    return reservation


def _probe_listen(port: int) -> None:
    """Raise OSError when somebody listens already; closing connections of an earlier job do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))
        probe.listen(1)
