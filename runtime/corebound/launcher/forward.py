"""Which variables of the launcher's environment reach ranks on other hosts: those on a list, and never a secret."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from corebound.config.exported import NAMES, PREFIXES, exported, looks_secret
from corebound.errors import ConfigError


def forwarded(
    environ: Mapping[str, str], export: str | None = None, from_files: Iterable[str] = ()
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the variables that go to other hosts, and a warning for each that was asked for and does not.

    `export` names more of them, as in COREBOUND_EXPORT: names, or prefixes that end in `*`, joined by commas.
    `from_files` are names that a file for all ranks has.

    Raises: ConfigError when `export` names nothing that could be a variable.
    """
    asked = list(from_files)
    names, prefixes = {*NAMES, *asked}, list(PREFIXES)
    for word in (export or "").split(","):
        word = word.strip()
        stem = word.removesuffix("*")
        if not word:
            continue
        if not stem or not stem.replace("_", "a").isalnum():
            raise ConfigError(f"COREBOUND_EXPORT: expected a variable's name, or a prefix and *, found {word!r}")
        asked.append(stem)
        (prefixes.append if word.endswith("*") else names.add)(stem)
    chosen = exported(environ, names=names, prefixes=prefixes, with_secrets=True)
    secrets = [name for name in chosen if looks_secret(name)]
    warnings = tuple(
        f"{name} does not go to other hosts, it looks like a secret: put it into a file on each of them"
        for name in _named(secrets, asked)
    )
    return {name: value for name, value in chosen.items() if name not in secrets}, warnings


def _named(secrets: Iterable[str], asked: Iterable[str]) -> list[str]:
    """Return the secrets that somebody may be waiting for: asked for by name, or known to be read by a rank."""
    return [name for name in secrets if name in asked or name == "HF_TOKEN"]
