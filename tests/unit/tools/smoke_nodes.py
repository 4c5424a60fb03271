"""A node for tests of the smoke run: this machine, unless the test says otherwise."""

from __future__ import annotations

from typing import Any

from smoke.targets import Target

ENTRY: dict[str, Any] = {
    "host": "here",
    "connection": "local",
    "address": "localhost",
    "user": "",
    "port": 22,
    "key_file": "",
    "ssh_config": "",
    "command": "/bin/false",
    "model": "/models/demo",
    "hostfile": "/etc/hostfile",
    "num_ranks": 2,
    "prompts": ['It\'s a "quoted" $prompt'],
    "max_new_tokens": 4,
    "dtype": "float32",
    "timeout_s": 5,
    "job_user": "",
    "become": False,
    "min_memory_gb_per_s": 0.0,
    "require_cluster": False,
    "evidence_minutes": 1,
}


def target(**values: Any) -> Target:
    """Returns a node, this machine unless the values say otherwise."""
    return Target(**{**ENTRY, **values})
