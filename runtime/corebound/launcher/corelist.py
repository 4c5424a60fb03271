"""The grammar of `--bind_core_list`: `0-3,8`, ascending and without overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable

from corebound.errors import ConfigError
from corebound.topology import format_cpu_list

MAX_CPU = 65535  # far above any kernel's limit; keeps a typing slip from filling memory
_ITEM = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_HINT = "write CPU numbers and ranges in ascending order, such as 0-3,8"


def parse_core_list(text: str, *, where: str = "--bind_core_list") -> tuple[int, ...]:
    """Return the CPU numbers that `text` lists, ascending.

    Raises: ConfigError naming `where` and the column of the first item that does not fit the grammar.
    """
    cpus: list[int] = []
    column = 1
    for item in text.split(","):
        cpus.extend(_parse_item(item, column, cpus[-1] if cpus else -1, where))
        column += len(item) + 1
    return tuple(cpus)


def _parse_item(item: str, column: int, last: int, where: str) -> range:
    place = f"{where}, column {column}"
    match = _ITEM.fullmatch(item)
    if match is None:
        found = repr(item) if item else "nothing"
        raise ConfigError(f"{place}: expected a CPU number or a range a-b, found {found}", hint=_HINT)
    start = int(match[1])
    stop = start if match[2] is None else int(match[2])
    if stop < start:
        raise ConfigError(f"{place}: range {item} ends before it starts", hint=_HINT)
    if start <= last:
        raise ConfigError(f"{place}: expected a CPU above {last}, found {item}", hint=_HINT)
    if stop > MAX_CPU:
        raise ConfigError(f"{place}: expected CPUs up to {MAX_CPU}, found {item}")
    return range(start, stop + 1)


def render_core_list(cpus: Iterable[int]) -> str:
    """Return CPU numbers in the grammar, as few ranges as possible."""
    return format_cpu_list(cpus)
