"""The nodes that a smoke run visits, as the cluster_tests role wrote them down."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Target:
    """One node: how to reach it, and what to run there.

    `job_user` may log in from node to node, empty where there is none; `become` says that the user of the visit may use
    sudo without a password.
    """

    host: str
    connection: str
    address: str
    user: str
    port: int
    key_file: str
    ssh_config: str
    command: str
    model: str
    hostfile: str
    num_ranks: int
    prompts: list[str]
    max_new_tokens: int
    dtype: str
    timeout_s: int
    job_user: str
    become: bool
    min_memory_gb_per_s: float
    require_cluster: bool
    evidence_minutes: int


def read_targets(path: Path) -> list[Target]:
    """Return the nodes that the cluster_tests role wrote down."""
    names = {field.name for field in fields(Target)}
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return [Target(**{name: value for name, value in entry.items() if name in names}) for entry in entries]
