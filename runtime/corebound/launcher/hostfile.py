"""The hostfile grammar: one `host slots=N` a line; blank lines and `#` comments are allowed.

A slot is a place for one rank (one process), as a rule a socket or a NUMA node; it is not a core. `host:N`, as Intel
MPI and MPICH write it, is read too, because that is what the MPI operator of Kubernetes hands to a launcher.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from corebound.errors import ConfigError

Dialect = Literal["slots", "colon"]
MAX_SLOTS = 4096
HOST_NAME = re.compile(
    r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.-]+)?"
)
_COLON_FORM = re.compile(r"(?P<name>[^:\s]+):(?P<num_slots>[0-9]+)")
_WORD = re.compile(r"\S+")
_HINT = "write `host slots=N` on each line, N being the number of ranks on that host"


@dataclass(frozen=True)
class Host:
    """A host and how many ranks it has places for."""

    name: str
    num_slots: int


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Return the hosts of a file, in its order.

    Raises: ConfigError when the file is missing, unreadable or does not follow the grammar.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"hostfile {path}: no such file", hint="leave out --hostfile to run on this machine alone"
        ) from None
    except OSError as error:
        raise ConfigError(f"hostfile {path}: {error.strerror}") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"hostfile {path}: expected UTF-8 text, found byte {data[error.start]:#04x}") from error
    return parse_hostfile(text, source=str(path))


def parse_hostfile(text: str, *, source: str = "hostfile") -> tuple[Host, ...]:
    """Return the hosts of a hostfile's text, in its order.

    Raises: ConfigError naming `source`, line and column.
    """
    hosts: dict[str, tuple[Host, int]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        host = _parse_line(line, f"{source}, line {number}")
        if host is None:
            continue
        if host.name in hosts:
            column = line.index(host.name) + 1
            raise ConfigError(
                f"{source}, line {number}, column {column}: host {host.name} is already on line {hosts[host.name][1]}",
                hint="give each host one line, with all its slots",
            )
        hosts[host.name] = (host, number)
    if not hosts:
        raise ConfigError(f"{source}: expected at least one host, found none", hint=_HINT)
    return tuple(host for host, _ in hosts.values())


def _parse_line(line: str, place: str) -> Host | None:
    words = list(_WORD.finditer(line.partition("#")[0]))
    if not words:
        return None
    name, *rest = words
    at = f"{place}, column"
    colon = _COLON_FORM.fullmatch(name[0])
    if colon is not None and HOST_NAME.fullmatch(colon["name"]) is not None:
        num_slots = _num_slots(colon["num_slots"], f"{at} {name.start() + colon.start('num_slots') + 1}")
        _expect_end(rest, at)
        return Host(colon["name"], num_slots)
    if HOST_NAME.fullmatch(name[0]) is None:
        raise ConfigError(f"{at} {name.start() + 1}: expected a host name, found {name[0]!r}", hint=_HINT)
    if not rest:
        raise ConfigError(f"{at} {name.end() + 1}: expected slots=N after {name[0]}, found nothing", hint=_HINT)
    slots, *junk = rest
    key, equals, value = slots[0].partition("=")
    if key != "slots" or not equals:
        raise ConfigError(f"{at} {slots.start() + 1}: expected slots=N, found {slots[0]!r}", hint=_HINT)
    num_slots = _num_slots(value, f"{at} {slots.start() + len('slots=') + 1}")
    _expect_end(junk, at)
    return Host(name[0], num_slots)


def _num_slots(value: str, place: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or not 1 <= int(value) <= MAX_SLOTS:
        found = repr(value) if value else "nothing"
        raise ConfigError(f"{place}: expected a number of slots from 1 to {MAX_SLOTS}, found {found}", hint=_HINT)
    return int(value)


def _expect_end(junk: Sequence[re.Match[str]], at: str) -> None:
    if junk:
        raise ConfigError(
            f"{at} {junk[0].start() + 1}: expected the end of the line, found {junk[0][0]!r}",
            hint="start a comment with #",
        )


def render_hostfile(hosts: Iterable[Host]) -> str:
    """Return the text of a hostfile."""
    return "".join(f"{host.name} slots={host.num_slots}\n" for host in hosts)


def render_machinefile(hosts: Iterable[Host], dialect: Dialect) -> str:
    """Return the text of a hostfile for a starter: `host slots=N` (Open MPI) or `host:N` (Intel MPI, MPICH).

    Raises: ConfigError for an IPv6 address where a colon precedes the count.
    """
    hosts = tuple(hosts)
    if dialect == "slots":
        return render_hostfile(hosts)
    for host in hosts:
        if ":" in host.name:
            raise ConfigError(
                f"host {host.name}: Intel MPI and MPICH cannot read an IPv6 address in a hostfile",
                hint="give the host a name in /etc/hosts, or use --launcher ssh",
            )
    return "".join(f"{host.name}:{host.num_slots}\n" for host in hosts)
