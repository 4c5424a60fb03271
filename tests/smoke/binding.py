"""Compares where ranks were planned to run with where the kernel says that they do. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smoke.checks import Check, cores, judged
from smoke.node import Answer

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlannedRank:
    """One rank as its own node plans it: `host` is the inventory's name, `hostname` what the node calls itself."""

    rank: int
    host: str
    hostname: str
    cpus: list[int]
    memory_policy: str
    memory_nodes: list[int]
    num_threads: int


def planned_ranks(host: str, hostname: str, own_name: str, launch: Row, bindings: Sequence[Row]) -> list[PlannedRank]:
    """Return the ranks of one node: which, by the launch's plan; where, by the plan of the node for itself.

    `own_name` is what the hostfile calls the node; `bindings` has one entry for each of its slots.
    """
    return [
        PlannedRank(
            rank=rank["rank"],
            host=host,
            hostname=hostname,
            cpus=bindings[rank["slot"]]["cpus"],
            memory_policy=bindings[rank["slot"]]["memory_policy"],
            memory_nodes=bindings[rank["slot"]]["memory_nodes"],
            num_threads=bindings[rank["slot"]]["num_threads"],
        )
        for rank in launch["ranks"]
        if rank["host"] == own_name and rank["slot"] < len(bindings)
    ]


def found_ranks(answer: Answer) -> dict[int, dict[str, Any]]:
    """Return what each rank reported of itself, by its number; a line that is no report is left out."""
    found = {}
    for line in answer.stdout.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("rank"), int):
            found[row["rank"]] = row
    return found


def judge_binding(planned: Sequence[PlannedRank], answer: Answer) -> list[Check]:
    """Return one check for each host: all its ranks run where they were planned to."""
    found = found_ranks(answer)
    checks = []
    for host in dict.fromkeys(rank.host for rank in planned):
        ranks = [rank for rank in planned if rank.host == host]
        faults = [fault for rank in ranks for fault in _faults(rank, found.get(rank.rank))]
        doubts = [doubt for rank in ranks for doubt in _doubts(rank, found.get(rank.rank))]
        places = "; ".join(f"rank {rank.rank} on CPUs {cores(rank.cpus)}" for rank in ranks)
        detail = "; ".join([*faults, *doubts]) or places
        check = judged(host, "binding", "ranks run where they were planned to", not faults, detail, answer)
        checks.append(check if faults or not doubts else _as_warning(check))
    return checks


def _as_warning(check: Check) -> Check:
    return Check(host=check.host, group=check.group, name=check.name, status="warn", detail=check.detail)


def _faults(planned: PlannedRank, found: Row | None) -> list[str]:
    """Return every difference between plan and fact, each with rank, host, what was planned and what was found."""
    who = f"rank {planned.rank} on {planned.host}"
    if found is None:
        return [f"{who}: planned on CPUs {cores(planned.cpus)}, found no such rank"]
    faults = []
    if found["host"] != planned.hostname:
        faults.append(f"{who}: planned on host {planned.hostname}, found on {found['host']}")
    if sorted(found["cpus"]) != sorted(planned.cpus):
        faults.append(f"{who}: planned on CPUs {cores(planned.cpus)}, found on {cores(found['cpus']) or 'none'}")
    if found["num_threads"] != planned.num_threads:
        faults.append(f"{who}: planned {planned.num_threads} threads, found {found['num_threads']}")
    if found["memory_policy"] == "unknown":
        return faults
    policy, nodes = planned.memory_policy, cores(planned.memory_nodes)
    if found["memory_policy"] != policy:
        faults.append(f"{who}: planned memory policy {policy} {nodes}, found {found['memory_policy']}".rstrip())
    elif policy != "default" and sorted(found["memory_nodes"]) != sorted(planned.memory_nodes):
        faults.append(f"{who}: planned memory of nodes {nodes}, found {cores(found['memory_nodes'])}")
    return faults


def _doubts(planned: PlannedRank, found: Row | None) -> list[str]:
    """Return what could not be compared: in a hardened container the kernel does not tell the memory policy."""
    if found is None or found["memory_policy"] != "unknown" or planned.memory_policy == "default":
        return []
    return [
        f"rank {planned.rank} on {planned.host}: memory policy not known ({found['policy_error']}), "
        f"planned {planned.memory_policy} {cores(planned.memory_nodes)}"
    ]
