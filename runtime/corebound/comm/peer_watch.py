"""Connections between the members of a group: when one ends, its member is gone.

The kernel closes a dead process's sockets at once, and a member that gives up closes its own. oneCCL notices no death:
beside it connections carry nothing. Those of link_transport.TcpTransport carry the data themselves.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import json
import secrets
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence

from torch.distributed.distributed_c10d import Store

from corebound.comm.base import as_timedelta
from corebound.config import env
from corebound.errors import CommError, CommTimeoutError

# Connections to machines that answer none of the kernel's questions for so long end, while that is wanted.
CUT_OFF_S = 15
_PROBE_EVERY_S = 3
_SIOCGIFADDR = 0x8915
_IFREQ = struct.Struct("16s2x2x4s16x")
_TOKEN_BYTES = 16
_PLACE_BYTES = 4
# A stranger that connects and says nothing must not hold up the members.
_GREETING_S = 5.0
# Sockets know no infinity.
_LONGEST_S = 30 * 86400.0


class PeerWatch:
    """One connection to each other member; `descriptors` has -1 at the own place. Every member makes one.

    `names` says what to call each member.

    Raises: CommError when a member cannot be reached within the timeout.
    """

    def __init__(self, store: Store, place: int, names: Sequence[str], timeout_s: float) -> None:
        size = len(names)
        self._sockets: dict[int, socket.socket] = {}
        deadline = time.monotonic() + timeout_s
        try:
            with _listen(own_address(), size) as listener:
                token = secrets.token_hex(_TOKEN_BYTES)
                address, port = listener.getsockname()[:2]
                store.set(f"watch/{place}", json.dumps([address, port, token]))
                for other in range(place):
                    self._sockets[other] = _connect(store, other, place, deadline)
                while len(self._sockets) < size - 1:
                    other, connection = _accept(listener, bytes.fromhex(token), size, deadline)
                    self._sockets[other] = connection
        except TimeoutError as error:
            self.close()
            missing = [names[other] for other in range(size) if other != place and other not in self._sockets]
            raise CommTimeoutError(
                f"connecting the members of a group: no word from {', '.join(missing)} within {timeout_s:g} s"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            raise CommError(f"connecting the members of a group: {error}") from error
        self.descriptors = [self._sockets[other].fileno() if other != place else -1 for other in range(size)]

    def ended(self) -> int | None:
        """Return the place of a member whose connection has ended, None while all live."""
        poll = select.poll()
        places = {connection.fileno(): place for place, connection in self._sockets.items()}
        for descriptor in places:
            # Nothing is sent over these when this is asked, so whatever happens is the end.
            poll.register(descriptor, select.POLLIN | select.POLLRDHUP)
        return next((places[descriptor] for descriptor, _ in poll.poll(0)), None)

    @contextlib.contextmanager
    def noticing_cuts(self) -> Iterator[None]:
        """Let connections also end to members whose machines have not answered for CUT_OFF_S."""
        for connection in self._sockets.values():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_EVERY_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, CUT_OFF_S // _PROBE_EVERY_S - 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        yield
        # Operations have timeouts of their own, and a network may come back.
        for connection in self._sockets.values():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)

    def close(self) -> None:
        """End all connections, which the other members notice at once."""
        for connection in self._sockets.values():
            with contextlib.suppress(OSError):  # it may have ended at the other side
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._sockets.clear()


def own_address() -> str:
    """Return the address of this machine on the way to the launch's rank 0."""
    place = env.rank_environment()
    if place is None:
        return "127.0.0.1"
    family, kind, _, _, target = socket.getaddrinfo(place.master_addr, place.master_port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Return the network interface that has this IPv4 address as its first, None when there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, _IFREQ.pack(name.encode(), b""))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(_IFREQ.unpack(answer)[1]) == address:
                return name
    return None


@contextlib.contextmanager
def _listen(address: str, size: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen(size)
        yield listener


def _connect(store: Store, other: int, place: int, deadline: float) -> socket.socket:
    key = f"watch/{other}"
    try:
        store.wait([key], as_timedelta(_left(deadline)))
        address, port, token = json.loads(store.get(key))
    except RuntimeError as error:
        raise TimeoutError(str(error)) from error
    connection = socket.create_connection((address, port), timeout=_left(deadline))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(bytes.fromhex(token) + place.to_bytes(_PLACE_BYTES, "little"))
    connection.settimeout(None)
    return connection


def _accept(listener: socket.socket, token: bytes, size: int, deadline: float) -> tuple[int, socket.socket]:
    while True:
        listener.settimeout(_left(deadline))
        connection, _ = listener.accept()
        connection.settimeout(min(_left(deadline), _GREETING_S))
        try:
            said = _receive(connection, _TOKEN_BYTES + _PLACE_BYTES)
        except OSError:
            said = b""
        other = int.from_bytes(said[_TOKEN_BYTES:], "little")
        if hmac.compare_digest(said[:_TOKEN_BYTES], token) and other < size:
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return other, connection
        connection.close()  # no member of ours


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes and (chunk := connection.recv(num_bytes - len(data))):
        data += chunk
    return data


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is over")
    return min(left, _LONGEST_S)
