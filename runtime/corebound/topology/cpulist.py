"""The kernel's list grammar for CPUs and nodes: `0-3,8,10-11`, with strides `0-15:2/4` (2 of every 4)."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Far above any kernel's limit; a damaged file must not become a list that fills memory.
MAX_NUMBER = 65535

_ITEM = re.compile(r"(\d+)(?:-(\d+)(?::(\d+)/(\d+))?)?")


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Return the numbers that `text` lists, ascending and without repeats; blank text lists none.

    Raises: ValueError naming the item that does not follow the grammar.
    """
    numbers: set[int] = set()
    stripped = text.strip()
    if not stripped:
        return ()
    for item in stripped.split(","):
        numbers.update(_parse_item(item.strip(), text))
    return tuple(sorted(numbers))


def _parse_item(item: str, text: str) -> Iterable[int]:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ValueError(f"CPU list {text.strip()!r}: expected `n`, `a-b` or `a-b:used/group`, found {item!r}")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        raise ValueError(f"CPU list {text.strip()!r}: range {item!r} ends before it starts")
    if last > MAX_NUMBER:
        raise ValueError(f"CPU list {text.strip()!r}: expected numbers up to {MAX_NUMBER}, found {item!r}")
    if match[3] is None:
        return range(first, last + 1)
    used, group = int(match[3]), int(match[4])
    if not 0 < used <= group:
        raise ValueError(f"CPU list {text.strip()!r}: stride of {item!r} must use between 1 and {group} of {group}")
    return (number for number in range(first, last + 1) if (number - first) % group < used)


def format_cpu_list(numbers: Iterable[int]) -> str:
    """Return `numbers` in the kernel's grammar, as few ranges as possible: `0-3,8`."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
