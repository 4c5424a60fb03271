"""GPT-NeoX: q, k, v per head; attention and MLP side by side where the configuration says so."""

from typing import Any

from corebound.sharding.modules.spec import LinearSpec
from corebound.sharding.modules.table import ModuleTable, config_heads


def table(config: Any) -> ModuleTable:
    """Return the table, by whether the residual is parallel."""
    return ModuleTable(
        heads=config_heads,
        attention="attention",
        attributes={},
        specs=(
            LinearSpec("attention.query_key_value", "column", "per_head"),
            LinearSpec("attention.dense", "row", "heads"),
            LinearSpec("mlp.dense_h_to_4h", "column", "even"),
            LinearSpec("mlp.dense_4h_to_h", "row", "even"),
        ),
        parallel=("attention.dense", "mlp.dense_4h_to_h") if config.use_parallel_residual else None,
    )
