"""The first words between a launcher and an agent elsewhere: who the agent is to be, and what its node is like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from corebound.errors import LaunchError
from corebound.launcher.addresses import Address, HostAddresses
from corebound.launcher.part import VERSION
from corebound.version import __version__

_SAME_RELEASE = "install the same release of Corebound on every host"


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """What the launcher tells each agent first.

    `reserve_port` has the agent find the port where ranks meet: `master_port`, or any if that is None.
    """

    host: str
    working_dir: str
    log_level: str
    reserve_port: bool = False
    master_port: int | None = None

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps({"version": VERSION, "release": __version__, **asdict(self)})


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What the agent answers: its process id, its addresses, and the port that it holds for the ranks to meet on."""

    pid: int
    machine: str
    addresses: tuple[Address, ...]
    reached_at: str | None = None
    port: int | None = None

    def to_event(self) -> dict[str, Any]:
        """Return the fields of the event."""
        return asdict(self)

    def of_host(self, host: str) -> HostAddresses:
        """Return the addresses under the name that the hostfile gives the host."""
        return HostAddresses(host=host, machine=self.machine, addresses=self.addresses, reached_at=self.reached_at)


def greeting_from_json(text: str) -> Greeting:
    """Return the greeting that `to_json` wrote.

    Raises: LaunchError when the text is not a greeting, or comes from another release.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        version, release = fields.pop("version"), fields.pop("release")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LaunchError(f"agent: expected a greeting, found {len(text)} unreadable characters") from None
    if (version, release) != (VERSION, __version__):
        raise LaunchError(
            f"Corebound {__version__} is installed here, the launch comes from release {release}", hint=_SAME_RELEASE
        )
    return Greeting(**fields)


def hello_from_event(event: Mapping[str, Any]) -> Hello:
    """Return the hello that `FrameWriter.hello` sent."""
    fields = {name: value for name, value in event.items() if name != "event"}
    hello = Hello(**fields)
    return replace(hello, addresses=tuple(Address(**address) for address in fields["addresses"]))
