"""Tells systemd how a launch that it runs as a service (Type=notify) is doing."""

from __future__ import annotations

import socket

from corebound.config import env
from corebound.logs import get_logger

_log = get_logger(__name__)


def ready(num_ranks: int, num_hosts: int) -> None:
    """Say that every rank of every host runs its command on the cores that it was to get."""
    _tell("READY=1", f"STATUS={num_ranks} ranks run on {num_hosts} host{'s' if num_hosts > 1 else ''}")


def stopping(reason: str) -> None:
    """Say that the launch is being brought down, and why."""
    _tell("STOPPING=1", f"STATUS={reason.splitlines()[0]}")


def _tell(*words: str) -> None:
    """Send one message; a launch does not end because nobody listens.

    Source: sd_notify(3); the address is a path, or a name in the abstract namespace that begins with @.
    """
    address = env.notify_socket()
    if address is None:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.sendto("\n".join(words).encode(), address)
    except OSError as error:
        _log.warning("NOTIFY_SOCKET %s: %s; systemd is not told %s", address, error.strerror, words[0])
