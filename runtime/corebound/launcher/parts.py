"""From a plan to what each agent is told."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from corebound.launcher.corelist import parse_core_list
from corebound.launcher.part import AgentPart, RankPart
from corebound.launcher.plan import LaunchPlan, NodePlan, RankPlan
from corebound.launcher.spec import LaunchSpec


def make_part(spec: LaunchSpec, node: NodePlan, job_id: str) -> AgentPart:
    """Return the part of one node, as its agent on this machine needs it.

    Raises: ConfigError for a core list that cannot be read.
    """
    log_prefix = None
    if spec.log_dir is not None:
        log_prefix = str(spec.log_dir.absolute() / f"{time.strftime('%Y%m%d%H%M%S')}_rank")
    return AgentPart(
        job_id=job_id,
        host=node.host,
        num_slots=node.num_slots,
        ranks=tuple(_rank_part(spec, rank) for rank in node.ranks),
        bind_cores=spec.binds,
        core_list=None if spec.bind_core_list is None else parse_core_list(spec.bind_core_list),
        log_prefix=log_prefix,
        rank0_stdin=spec.rank0_stdin if any(rank.rank == 0 for rank in node.ranks) else None,
        grace_s=spec.grace_s,
    )


def make_linked_parts(
    spec: LaunchSpec, whole: LaunchPlan, job_id: str, environ: Mapping[str, str], pythons: Mapping[str, str]
) -> dict[str, AgentPart]:
    """Return the part of each host for agents elsewhere; `environ` is what goes to all, `pythons` is each host's."""
    return {
        node.host: replace(
            part := make_part(spec, node, job_id),
            ranks=tuple(replace(rank, command=_with_python(rank.command, pythons[node.host])) for rank in part.ranks),
            environ=environ,
            meets_elsewhere=len(whole.nodes) > 1,
        )
        for node in whole.nodes
    }


def _with_python(command: tuple[str, ...], python: str) -> tuple[str, ...]:
    return (python, *command[1:]) if command[0] == sys.executable else command


def _rank_part(spec: LaunchSpec, rank: RankPlan) -> RankPart:
    # The agent sees the cores; the number of threads is its to set unless the caller fixed it.
    env = {name: value for name, value in rank.env.items() if name != "OMP_NUM_THREADS" or name in spec.env}
    return RankPart(rank=rank.rank, local_rank=rank.local_rank, slot=rank.slot, command=rank.command, env=env)
