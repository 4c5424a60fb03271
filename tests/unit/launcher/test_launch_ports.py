from __future__ import annotations

import errno
import socket

import pytest

from corebound.errors import LaunchError
from corebound.launcher import ports
from corebound.launcher.ports import reserve_port


def test_a_listener_can_use_a_reserved_port() -> None:
    with reserve_port(None) as reservation, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", reservation.port))
        server.listen()
        with socket.create_connection(("127.0.0.1", reservation.port), timeout=5):
            pass


def test_a_listener_for_both_ip_versions_can_use_a_reserved_port() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine lacks IPv6")
    with (
        reserve_port(None) as reservation,
        socket.create_server(("", reservation.port), family=socket.AF_INET6, dualstack_ipv6=True),
        socket.create_connection(("127.0.0.1", reservation.port), timeout=5),
    ):
        pass


def test_two_reservations_never_share_a_port() -> None:
    with reserve_port(None) as first, reserve_port(None) as second, reserve_port(None) as third:
        assert len({first.port, second.port, third.port}) == 3


def test_a_busy_port_that_was_asked_for_is_an_error_that_names_it() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(LaunchError, match=f"--master_port {port}: the port is in use") as caught:
            reserve_port(port)
    assert caught.value.hint is not None and "another port" in caught.value.hint


def test_a_port_that_another_launch_has_reserved_is_busy_too() -> None:
    with reserve_port(None) as other, pytest.raises(LaunchError, match="in use"):
        reserve_port(other.port)


def test_a_free_port_that_was_asked_for_is_used() -> None:
    with reserve_port(None) as found:
        port = found.port
    with reserve_port(port) as reservation:
        assert reservation.port == port


def test_connections_of_an_earlier_job_that_are_still_closing_do_not_make_a_port_busy() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port), timeout=5)
        accepted, _ = server.accept()
        accepted.close()  # the server's side closes first and is left in TIME_WAIT
        client.recv(1)
        client.close()
    with reserve_port(port) as reservation:
        assert reservation.port == port


@pytest.mark.parametrize(("asked", "name"), [(None, "port 29500"), (4711, "--master_port 4711")])
def test_a_refusal_for_another_reason_than_a_busy_port_is_reported(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, name: str
) -> None:
    def refuse(port: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ports, "_probe_listen", refuse)
    # Another launch may hold the real one, which would be found out first.
    monkeypatch.setattr(ports.PortReservation, "_lock_port", lambda self, port: None)
    with pytest.raises(LaunchError, match=f"^{name}: Permission denied"):
        reserve_port(asked)
