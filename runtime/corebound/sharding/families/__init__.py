"""The family tables. A family is added by writing its table and entering it here; see docs/models.md."""

from __future__ import annotations

from corebound.sharding.families import (
    bloom,
    falcon,
    gemma,
    gpt_neox,
    gptj,
    granite,
    llama,
    mistral,
    mixtral,
    opt,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    stablelm,
    starcoder2,
)
from corebound.sharding.table import FamilyTable

TABLES: dict[str, FamilyTable] = {
    module.TABLE.family: module.TABLE
    for module in (
        bloom,
        falcon,
        gemma,
        gpt_neox,
        gptj,
        granite,
        llama,
        mistral,
        mixtral,
        opt,
        phi3,
        qwen2,
        qwen2_moe,
        qwen3,
        qwen3_moe,
        stablelm,
        starcoder2,
    )
}
