"""What json.loads takes to refuse objects that have a key twice: which of the values counts is nowhere said."""

from __future__ import annotations

from typing import Any


class RepeatedKeyError(Exception):
    """A key that an object has twice, as the only argument."""

    def __str__(self) -> str:
        return f"key {self.args[0]!r}: expected once in an object, found twice"


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON from its pairs; the `object_pairs_hook` of json.loads.

    Raises: RepeatedKeyError.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RepeatedKeyError(key)
        found[key] = value
    return found
