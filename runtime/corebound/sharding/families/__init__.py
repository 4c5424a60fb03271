"""The family tables. A family is added by writing its table and entering it here; see docs/models.md."""

from __future__ import annotations

from corebound.sharding.families import bloom, llama
from corebound.sharding.table import FamilyTable

TABLES: dict[str, FamilyTable] = {table.family: table for table in (bloom.TABLE, llama.TABLE)}
