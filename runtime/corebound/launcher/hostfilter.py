"""The grammar of `--include` and `--exclude`: `NAME[:slot,slot...]@NAME...`.

A name without slots means the whole host. An IPv6 address stands in brackets: `[fe80::1]:0,1`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from corebound.config.suggest import nearest
from corebound.errors import ConfigError
from corebound.launcher.hostfile import HOST_NAME, MAX_SLOTS, Host

_HINT = "write NAME or NAME:0,1 and join several with @, such as node-a@node-b:0,2"


@dataclass(frozen=True)
class HostSpec:
    """One host of a filter; `slots` None means all of them. Slots are ascending and distinct."""

    name: str
    slots: tuple[int, ...] | None = None


def parse_filter(text: str, *, where: str) -> tuple[HostSpec, ...]:
    """Return the hosts of a filter, in its order; several entries of one host are merged.

    Raises: ConfigError naming `where` (the flag) and the column.
    """
    merged: dict[str, set[int] | None] = {}
    column = 1
    for entry in text.split("@"):
        spec = _parse_entry(entry, column, where)
        seen = merged.get(spec.name, set())
        merged[spec.name] = None if seen is None or spec.slots is None else seen | set(spec.slots)
        column += len(entry) + 1
    return tuple(HostSpec(name, None if slots is None else tuple(sorted(slots))) for name, slots in merged.items())


def _parse_entry(entry: str, column: int, where: str) -> HostSpec:
    if entry.startswith("["):
        name, bracket, rest = entry[1:].partition("]")
        if not bracket:
            raise ConfigError(f"{where}, column {column}: expected ] after {entry!r}", hint=_HINT)
        name_column, rest_column = column + 1, column + len(name) + 2
    else:
        name, colon, slots = entry.partition(":")
        rest, name_column, rest_column = colon + slots, column, column + len(name)
    if HOST_NAME.fullmatch(name) is None or (":" in name) != entry.startswith("["):
        found = repr(name) if name else "nothing"
        raise ConfigError(f"{where}, column {name_column}: expected a host name, found {found}", hint=_HINT)
    if not rest:
        return HostSpec(name)
    if not rest.startswith(":"):
        raise ConfigError(f"{where}, column {rest_column}: expected : or @, found {rest[0]!r}", hint=_HINT)
    if ":" in rest[1:]:
        at = rest_column + 1 + rest[1:].index(":")
        raise ConfigError(
            f"{where}, column {at}: expected a slot, found ':'", hint=f"{_HINT}; put an IPv6 address in [brackets]"
        )
    return HostSpec(name, tuple(sorted(_parse_slots(rest[1:], rest_column + 1, where))))


def _parse_slots(text: str, column: int, where: str) -> Iterable[int]:
    seen: set[int] = set()
    for word in text.split(","):
        if not re.fullmatch(r"[0-9]{1,9}", word) or int(word) >= MAX_SLOTS:
            found = repr(word) if word else "nothing"
            raise ConfigError(f"{where}, column {column}: expected a slot number, found {found}", hint=_HINT)
        if int(word) in seen:
            raise ConfigError(f"{where}, column {column}: slot {int(word)} is named twice", hint=_HINT)
        seen.add(int(word))
        yield int(word)
        column += len(word) + 1


def render_filter(specs: Iterable[HostSpec]) -> str:
    """Return the text of a filter."""
    return "@".join(_render_spec(spec) for spec in specs)


def _render_spec(spec: HostSpec) -> str:
    name = f"[{spec.name}]" if ":" in spec.name else spec.name
    return name if spec.slots is None else f"{name}:{','.join(str(slot) for slot in spec.slots)}"


def select_slots(
    hosts: Sequence[Host],
    include: Sequence[HostSpec] | None,
    exclude: Sequence[HostSpec] | None,
) -> dict[str, tuple[int, ...]]:
    """Return the slots to use on each host, in the order of `hosts`; hosts without any are left out.

    Raises: ConfigError for a host or slot that does not exist, or when nothing is left.
    """
    slots = {host.name: tuple(range(host.num_slots)) for host in hosts}
    if include is not None:
        wanted = _resolve(slots, include, "--include")
        return {name: wanted[name] for name in slots if name in wanted}
    if exclude is not None:
        refused = _resolve(slots, exclude, "--exclude")
        slots = {
            name: tuple(slot for slot in all_ if slot not in refused.get(name, ())) for name, all_ in slots.items()
        }
        slots = {name: left for name, left in slots.items() if left}
        if not slots:
            raise ConfigError(f"--exclude {render_filter(exclude)} leaves no slot on any host")
    return slots


def _resolve(known: Mapping[str, tuple[int, ...]], specs: Sequence[HostSpec], where: str) -> dict[str, tuple[int, ...]]:
    resolved: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        if spec.name not in known:
            close = nearest(spec.name, known)
            hint = f"did you mean `{close}`? " if close else ""
            raise ConfigError(f"{where}: unknown host {spec.name!r}", hint=f"{hint}hosts: {', '.join(known)}")
        beyond = [slot for slot in spec.slots or () if slot not in known[spec.name]]
        if beyond:
            raise ConfigError(
                f"{where}: host {spec.name} has slots 0 to {len(known[spec.name]) - 1}, found slot {beyond[0]}"
            )
        resolved[spec.name] = known[spec.name] if spec.slots is None else spec.slots
    return resolved
