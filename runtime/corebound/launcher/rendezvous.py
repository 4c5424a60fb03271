"""Where agents that MPI or Slurm started find their launcher."""

from __future__ import annotations

import os
import queue
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from corebound.errors import LaunchError
from corebound.launcher.handshake import question
from corebound.launcher.link import Link
from corebound.launcher.signals import SignalPipe
from corebound.launcher.streams import Pump
from corebound.logs import get_logger

# A starter that gave up leaves agents that may still be on their way.
_AFTERWARDS_S = 1.0
_TURN_S = 0.2
_log = get_logger(__name__)


class StartInterruptedError(Exception):
    """A signal came before all agents had arrived."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Rendezvous:
    """A listening socket at which agents prove that they belong to this launch, all of them within `timeout_s`.

    Use as a context manager.
    """

    def __init__(self, secret: str, timeout_s: float) -> None:
        self._secret = secret
        self._timeout_s = timeout_s
        if socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            self._listener = socket.create_server(("", 0))
        self.port: int = self._listener.getsockname()[1]
        self._arrived: queue.SimpleQueue[tuple[str, socket.socket]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> Rendezvous:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listener.close()

    def links(
        self,
        hosts: Mapping[str, str],
        starter: subprocess.Popen[bytes],
        words: Pump,
        signals: SignalPipe,
        hint_for: Callable[[Sequence[str]], str | None],
    ) -> list[Link]:
        """Return a link to the agent of each host, in order; `hosts` gives the host that an agent's identity means.

        Raises: LaunchError when the starter gives up or the time is over, naming the hosts that are missing.
        """
        links: dict[str, Link] = {}
        deadline_s = time.monotonic() + self._timeout_s
        gave_up = False
        with selectors.DefaultSelector() as selector:
            for source in (self._listener, self._wake_read, signals):
                selector.register(source, selectors.EVENT_READ)
            while len(links) < len(hosts):
                for key, _ in selector.select(_TURN_S):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is signals:
                        for number in signals.read():
                            raise StartInterruptedError(number)
                self._collect(hosts, links, words)
                if not gave_up and starter.poll() is not None:
                    gave_up, deadline_s = True, time.monotonic() + _AFTERWARDS_S
                if time.monotonic() >= deadline_s and len(links) < len(hosts):
                    raise self._missing(hosts, links, starter, words, hint_for)
        return [links[host] for host in hosts.values()]

    def _accept(self) -> None:
        connection, peer = self._listener.accept()
        threading.Thread(target=self._question, args=(connection, peer[0]), daemon=True).start()

    def _question(self, connection: socket.socket, peer: str) -> None:
        try:
            identity = question(connection, self._secret)
        except (OSError, ValueError) as error:
            _log.debug("a connection from %s is refused: %s", peer, error)
            connection.close()
            return
        self._arrived.put((identity, connection))
        os.write(self._wake_write, b"x")

    def _collect(self, hosts: Mapping[str, str], links: dict[str, Link], words: Pump) -> None:
        while not self._arrived.empty():
            identity, connection = self._arrived.get()
            host = hosts.get(identity)
            if host is None or host in links:
                connection.close()
                raise LaunchError(
                    f"an agent arrived as number {identity!r}, expected one each of {', '.join(hosts)}",
                    hint="each host must get one agent: look for contradicting --launcher_args",
                )
            fd = connection.detach()
            links[host] = Link(host, fd, fd, words=words)

    def _missing(
        self,
        hosts: Mapping[str, str],
        links: Mapping[str, Link],
        starter: subprocess.Popen[bytes],
        words: Pump,
        hint_for: Callable[[Sequence[str]], str | None],
    ) -> LaunchError:
        words.join(0.5)
        missing = [host for host in hosts.values() if host not in links]
        ended = f"its starter ended with {starter.returncode}"
        if starter.returncode is None:
            ended = f"the {self._timeout_s:g} s of COREBOUND_START_TIMEOUT_S are over"
        lines = [f"no agent arrived from {', '.join(missing)} ({len(missing)} of {len(hosts)} hosts): {ended}"]
        lines.extend(f"    {line}" for line in words.tail())
        for link in links.values():
            link.close()
        return LaunchError("\n".join(lines), hint=hint_for(words.tail()))
