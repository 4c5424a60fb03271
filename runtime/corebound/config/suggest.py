"""Errors for names that are not known, with the nearest one that is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from corebound.errors import ConfigError


def nearest(name: str, valid: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the valid name most like `name`, or None when none reaches `cutoff` (0 anything, 1 only equal)."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, valid: Iterable[str], *, where: str = "") -> ConfigError:
    """Return the error for an unknown `kind` (such as `launcher`): nearest name first, then all of them."""
    names = sorted(valid)
    close = nearest(name, names)
    place = f" in {where}" if where else ""
    hint = f"did you mean `{close}`? " if close else ""
    return ConfigError(f"unknown {kind}{place}: {name!r}", hint=f"{hint}valid: {', '.join(names)}")


def require_choice(kind: str, name: str, valid: Iterable[str], *, where: str = "") -> str:
    """Return `name` if it is one of `valid`; raise ConfigError with the nearest valid name if not."""
    names = list(valid)
    if name not in names:
        raise unknown_name(kind, name, names, where=where)
    return name
