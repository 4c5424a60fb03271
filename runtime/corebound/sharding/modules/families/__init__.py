"""One table per family, by the `model_type` of its configuration; some depend on the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from corebound.sharding.modules.families import bloom, llama
from corebound.sharding.modules.table import ModuleTable

TABLES: dict[str, ModuleTable | Callable[[Any], ModuleTable]] = {
    "bloom": bloom.TABLE,
    "llama": llama.TABLE,
}


def table_of(config: Any) -> ModuleTable | None:
    """Return the table for a model with this configuration, or None."""
    found = TABLES.get(getattr(config, "model_type", ""))
    return found if found is None or isinstance(found, ModuleTable) else found(config)
