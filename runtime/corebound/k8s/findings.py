"""What is wrong with a manifest: which field of which document, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem. `path` is the field, as in `spec.template.spec.containers[0].image`; `rule` a stable name."""

    path: str
    reason: str
    rule: str
    severity: Severity = "error"
    source: str = ""
    document: str = ""

    def render(self) -> str:
        """Return the line for a terminal."""
        where = ": ".join(part for part in (self.source, self.document, self.path) if part)
        return f"{self.severity}: {where}: {self.reason} [{self.rule}]"


def warning(path: str, reason: str, rule: str) -> Finding:
    """Return a finding that does not make a manifest wrong."""
    return Finding(path=path, reason=reason, rule=rule, severity="warning")


def error(path: str, reason: str, rule: str) -> Finding:
    """Return a finding that makes a manifest wrong."""
    return Finding(path=path, reason=reason, rule=rule)


def join(path: str, *parts: str | int) -> str:
    """Return the path of a field below another: texts are keys, numbers indexes of a list."""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif "." in part or "/" in part:
            path += f"[{part!r}]"
        else:
            path += f".{part}" if path else part
    return path


def mapping(data: object, *keys: str) -> Mapping[str, Any]:
    """Return the mapping below `keys`, an empty one where there is none: its type is the schema's business."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def items(data: object, *keys: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the mappings in the list below `keys`, with their indexes."""
    *above, last = keys
    found = mapping(data, *above).get(last)
    if not isinstance(found, Sequence) or isinstance(found, str):
        return []
    return [(index, item) for index, item in enumerate(found) if isinstance(item, Mapping)]


def words(values: Iterable[object]) -> str:
    """Return values as a list in a sentence."""
    return ", ".join(str(value) for value in values)
