"""A bounded wait until every host of a launch has a name that resolves and an SSH server that answers.

MPI's own starters hang for ever, or fail at once, on a host that is still starting, as the pods of a job do.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

from corebound.errors import LaunchError
from corebound.launcher.rendezvous import StartInterruptedError
from corebound.launcher.signals import SignalPipe
from corebound.logs import get_logger

SSH_PORT = 22
_CONNECT_S = 1.0
_PAUSE_S = 0.5
_TELL_EVERY_S = 15.0
_log = get_logger(__name__)


def wait_for_hosts(hosts: Sequence[str], port: int, timeout_s: float, signals: SignalPipe) -> None:
    """Return when every host answers at the port.

    Raises: LaunchError with each host that did not answer in time and why; StartInterruptedError for a signal.
    """
    started_s = told_s = time.monotonic()
    missing = dict.fromkeys(hosts, "not asked yet")
    while True:
        missing = {host: why for host in missing if (why := unreachable(host, port))}
        now_s = time.monotonic()
        if not missing:
            _log.debug("all hosts answer after %.1f s", now_s - started_s)
            return
        if now_s - started_s >= timeout_s:
            raise LaunchError(
                f"not reachable within {timeout_s:g} s: {_listed(missing)}",
                hint="are those hosts started, and does a network policy or firewall let the port through?",
            )
        if now_s - told_s >= _TELL_EVERY_S:
            told_s = now_s
            _log.warning("waiting for %s (%.0f of %g s)", _listed(missing), now_s - started_s, timeout_s)
        if select.select([signals], [], [], _PAUSE_S)[0]:
            for number in signals.read():
                raise StartInterruptedError(number)


def unreachable(host: str, port: int) -> str | None:
    """Return why no server answers at a host's port, None if one does."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return None
    except socket.gaierror as error:
        return f"its name does not resolve: {error.strerror}"
    except OSError as error:
        return f"port {port}: {error.strerror or error}"


def _listed(missing: dict[str, str]) -> str:
    return "; ".join(f"{host} ({why})" for host, why in missing.items())
