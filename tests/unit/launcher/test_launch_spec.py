from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corebound.errors import ConfigError
from corebound.launcher.spec import LaunchSpec

HOSTS = Path("hosts")


def test_a_spec_reads_no_file() -> None:
    assert LaunchSpec(command=("x",), hostfile=Path("/nowhere/at/all"), include="a:0").include == "a:0"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"command": ()}, "needs a command"),
        ({"include": "a", "exclude": "b"}, "--include and --exclude cannot be used together"),
        ({"include": "a", "num_nodes": 1, "hostfile": HOSTS}, "--include and --num_nodes cannot be used together"),
        ({"exclude": "a", "num_accelerators": 2}, "--exclude and --num_accelerators cannot be used together"),
        ({"num_nodes": 2}, "--num_nodes 2 needs --hostfile"),
        ({"num_nodes": 0}, "--num_nodes: expected a number from 1"),
        ({"num_accelerators": -1}, "--num_accelerators: expected a number from 1"),
        ({"master_port": 65536}, "--master_port: expected a number from 1 to 65535"),
        ({"ssh_port": 0}, "--ssh_port: expected"),
        ({"launcher": "shh"}, "unknown launcher in --launcher: 'shh'"),
        ({"launcher": "pdsh"}, "--launcher pdsh: Corebound does not use it"),
        ({"include": "a:"}, "--include, column 3"),
        ({"bind_core_list": "3,2"}, "--bind_core_list, column 3"),
        ({"node_rank": 0}, "--node_rank has a meaning only with --no_ssh"),
        ({"no_ssh": True, "hostfile": HOSTS}, "--no_ssh needs --node_rank"),
        ({"no_ssh": True, "node_rank": 0}, "--no_ssh needs --hostfile"),
        ({"grace_s": -1.0}, "grace_s: expected 0 or more"),
        ({"env": {"A=B": "x"}}, "env: expected a variable name"),
        ({"env": {"A": "x\0"}}, "env: expected a variable name"),
    ],
)
def test_values_out_of_range_and_contradictions_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LaunchSpec(**{"command": ("x",), **fields})
    assert problem in caught.value.message


def test_a_core_list_asks_for_binding() -> None:
    assert LaunchSpec(command=("x",), bind_core_list="0-3").binds is True
    assert LaunchSpec(command=("x",)).binds is False
    assert LaunchSpec(command=("x",), bind_cores_to_rank=None).binds is None
