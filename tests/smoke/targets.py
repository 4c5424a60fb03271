"""The nodes that a smoke run visits, and how to run a command on one of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fabric import Config, Connection
from invoke.exceptions import CommandTimedOut
from paramiko import RejectPolicy, SSHException


@dataclass(frozen=True, kw_only=True)
class Target:
    """One node: how to reach it, and what to run there."""

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


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command on a node came to."""

    exit_code: int
    stdout: str
    stderr: str


def read_targets(path: Path) -> list[Target]:
    """Return the nodes that the cluster_tests role wrote down."""
    names = {field.name for field in fields(Target)}
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return [Target(**{name: value for name, value in entry.items() if name in names}) for entry in entries]


def connect(target: Target) -> Connection:
    """Return a connection, not opened yet, that accepts the node's host key only if it is known, as ssh would."""
    connection = Connection(
        target.address,
        user=target.user or None,
        port=target.port,
        connect_timeout=10,
        connect_kwargs={"key_filename": target.key_file} if target.key_file else {},
        config=Config(runtime_ssh_path=target.ssh_config or None),
    )
    # Fabric's own choice is to accept any key.
    connection.client.set_missing_host_key_policy(RejectPolicy())
    for name in connection.ssh_config.get("userknownhostsfile", "~/.ssh/known_hosts").split():
        known_hosts = Path(name).expanduser()
        if known_hosts.is_file():
            connection.client.load_system_host_keys(str(known_hosts))
    return connection


def run_on(target: Target, words: Sequence[str]) -> Answer:
    """Run a command on the node and return what it came to; a node that cannot be reached is an answer too."""
    text = shlex.join(words)
    connection = connect(target)
    run = connection.local if target.connection == "local" else connection.run
    try:
        result = run(text, hide=True, warn=True, in_stream=False, timeout=target.timeout_s)
    except CommandTimedOut:
        return Answer(exit_code=-1, stdout="", stderr=f"no answer within {target.timeout_s} s: {text}")
    except (OSError, EOFError, SSHException) as error:
        return Answer(exit_code=-1, stdout="", stderr=f"cannot reach {target.address} port {target.port}: {error}")
    finally:
        connection.close()
    return Answer(exit_code=result.exited, stdout=result.stdout, stderr=result.stderr)
