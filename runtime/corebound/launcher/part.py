"""The part of a launch that one node's agent carries out, as JSON on the agent's standard input.

Standard input and not the command line, because environment values and prompts are nobody else's business.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from corebound.errors import LaunchError

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class RankPart:
    """One rank of the node: what to run, and its place among the node's slots."""

    rank: int
    local_rank: int
    slot: int
    command: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class AgentPart:
    """All that an agent needs to know. `log_prefix` is a path to which `<rank>.log` is added, None without logs.

    `parent_pid` is the launcher on the same machine, None where a remote shell lies between. `environ` is what of the
    launcher's environment goes to other hosts. `meets_elsewhere` says that ranks of other hosts belong to the job.
    """

    job_id: str
    host: str
    num_slots: int
    ranks: tuple[RankPart, ...]
    bind_cores: bool | None
    core_list: tuple[int, ...] | None
    log_prefix: str | None = None
    rank0_stdin: bytes | None = None
    grace_s: float = 2.0
    parent_pid: int | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    meets_elsewhere: bool = False

    def to_json(self) -> str:
        """Return one line of JSON."""
        fields = asdict(self)
        stdin = self.rank0_stdin
        fields["rank0_stdin"] = None if stdin is None else base64.b64encode(stdin).decode()
        return json.dumps({"version": VERSION, **fields})


def part_from_json(text: str) -> AgentPart:
    """Return the part that `to_json` wrote.

    Raises: LaunchError when the text is cut short, or was written by another version.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        version = fields.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LaunchError(
            f"agent: expected the plan of this node on standard input, found {len(text)} unreadable characters"
        ) from None
    if version != VERSION:
        raise LaunchError(
            f"agent: expected a plan of version {VERSION}, found {version}",
            hint="install the same release of Corebound on every node",
        )
    stdin = fields.pop("rank0_stdin")
    core_list = fields.pop("core_list")
    return AgentPart(
        ranks=tuple(RankPart(**{**rank, "command": tuple(rank["command"])}) for rank in fields.pop("ranks")),
        rank0_stdin=None if stdin is None else base64.b64decode(stdin),
        core_list=None if core_list is None else tuple(core_list),
        **fields,
    )
