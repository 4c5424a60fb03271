"""What `optimize` did to a module: kept with the module, comparable in code, readable in print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from corebound.errors import ConfigError

_ATTRIBUTE = "_corebound_optimization"


@dataclass(frozen=True)
class Change:
    """One submodule by its name, and what it was and became, or why it stayed (`after` is then None)."""

    name: str
    before: str
    after: str | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class OptimizationReport:
    """What `optimize` changed. `notes` are sentences about the module as a whole."""

    backend: str
    dtype: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    @property
    def replaced(self) -> tuple[Change, ...]:
        """The submodules that are others now."""
        return tuple(change for change in self.changes if change.after is not None)

    @property
    def kept(self) -> tuple[Change, ...]:
        """The submodules that could have been replaced and were not, with the reason."""
        return tuple(change for change in self.changes if change.after is None)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        rows = [{"name": c.name, "before": c.before, "after": c.after, "reason": c.reason} for c in self.changes]
        return {"backend": self.backend, "dtype": self.dtype, "changes": rows, "notes": list(self.notes)}

    def __str__(self) -> str:
        lines = [f"optimized by backend {self.backend} for {self.dtype}"]
        kinds = Counter((change.before, change.after) for change in self.replaced)
        lines += [f"  {count} x {before} -> {after}" for (before, after), count in kinds.items()]
        lines += [f"  kept {change.name} ({change.before}): {change.reason}" for change in self.kept]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def attach(model: nn.Module, report: OptimizationReport) -> None:
    """Keep the report with the module that it is about."""
    setattr(model, _ATTRIBUTE, report)


def report_of(model: nn.Module) -> OptimizationReport | None:
    """Return the module's report, None when it was not optimized."""
    report = getattr(model, _ATTRIBUTE, None)
    return report if isinstance(report, OptimizationReport) else None


def optimization_report(model: nn.Module) -> OptimizationReport:
    """Return what `corebound.optimize` did to `model`; printing it gives a summary.

    Raises: ConfigError when the module is not one that `corebound.optimize` returned.
    """
    report = report_of(model)
    if report is None:
        raise ConfigError(
            f"optimization_report: this {type(model).__name__} was not optimized",
            hint="pass the module that corebound.optimize returned",
        )
    return report


def module_types(model: nn.Module) -> dict[str, str]:
    """Return name -> class of every submodule."""
    return {name: type(module).__name__ for name, module in model.named_modules()}


def type_changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Change, ...]:
    """Return the names whose class is another one now, and the new names that replace what stood there."""
    return tuple(
        Change(name, before.get(name, "nothing"), kind) for name, kind in after.items() if before.get(name) != kind
    )
