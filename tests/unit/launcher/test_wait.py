from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from corebound.errors import ConfigError, LaunchError
from corebound.launcher.rendezvous import StartInterruptedError
from corebound.launcher.signals import SignalPipe
from corebound.launcher.spec import LaunchSpec
from corebound.launcher.wait import wait_for_hosts


@pytest.fixture
def signals() -> Iterator[SignalPipe]:
    with SignalPipe((signal.SIGTERM,)) as pipe:
        yield pipe


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_host_that_answers_later_is_waited_for(signals: SignalPipe) -> None:
    port = free_port()
    servers: list[socket.socket] = []
    timer = threading.Timer(0.7, lambda: servers.append(socket.create_server(("127.0.0.1", port))))
    timer.start()
    started = time.monotonic()
    wait_for_hosts(["127.0.0.1"], port, 30.0, signals)
    assert time.monotonic() - started >= 0.5
    timer.join()
    servers[0].close()


def test_hosts_that_do_not_answer_are_all_named_with_the_reason(signals: SignalPipe) -> None:
    port = free_port()
    with pytest.raises(LaunchError) as caught:
        wait_for_hosts(["127.0.0.1", "no-such-host.invalid"], port, 0.1, signals)
    assert f"127.0.0.1 (port {port}: Connection refused)" in caught.value.message
    assert "no-such-host.invalid (its name does not resolve: " in caught.value.message
    assert "within 0.1 s" in caught.value.message


def test_a_signal_ends_the_wait(signals: SignalPipe) -> None:
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(StartInterruptedError) as caught:
        wait_for_hosts(["127.0.0.1"], free_port(), 30.0, signals)
    timer.join()
    assert caught.value.number == signal.SIGTERM


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_a_time_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="--wait_for_hosts: expected seconds, 0 or more"):
        LaunchSpec(command=("true",), wait_for_hosts_s=value)
