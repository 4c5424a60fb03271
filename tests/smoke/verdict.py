"""Judges what one node reported of itself. Pure: text in, checks out."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from smoke.checks import Check, cores, failed, judged, parse, parse_success
from smoke.node import Answer

# A node that reads memory at less than this part of the median of all nodes has a fault or another job.
SLOW_PART = 0.5


def judge_doctor(host: str, answer: Answer) -> list[Check]:
    """Return whether the node's own diagnosis found nothing that fails."""
    report = parse(answer)
    if report is None:
        return [failed(host, "doctor", "doctor answers", answer)]
    faults = [f"{item['name']}: {item['detail']}" for item in report["checks"] if item["status"] == "fail"]
    detail = "; ".join(faults) or f"{len(report['checks'])} checks"
    return [judged(host, "doctor", "doctor finds nothing that fails", not faults, detail, answer)]


def judge_hostfile(host: str, answer: Answer, num_nodes: int) -> list[Check]:
    """Return whether the launcher reads the delivered hostfile and finds every node in it."""
    plan = parse_success(answer)
    if plan is None:
        return [failed(host, "hostfile", "hostfile is understood", answer)]
    hosts = sorted({str(rank["host"]) for rank in plan["ranks"]})
    detail = f"{len(plan['ranks'])} ranks on {', '.join(hosts)}"
    name = "hostfile is understood"
    return [judged(host, "hostfile", name, len(hosts) == num_nodes, f"{detail}; expected {num_nodes} hosts", answer)]


def judge_hostfiles_agree(plans: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Return a failed check for each node whose hostfile says other hosts or slots than that of the first."""
    checks = []
    slots = {host: {item["host"]: item["num_slots"] for item in plan["hosts"]} for host, plan in plans.items()}
    first = next(iter(slots), "")
    for host, own in slots.items():
        if list(own.items()) != list(slots[first].items()):
            detail = f"{_slots(own)}; expected as on {first}: {_slots(slots[first])}"
            checks.append(judged(host, "hostfile", "hostfile is that of the first node", False, detail))
    return checks


def _slots(hosts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} slots={number}" for name, number in hosts.items())


def num_physical_cores(answer: Answer) -> int:
    """Return how many whole cores a node's `corebound topology --json` lists; 0 where it does not say."""
    report = parse_success(answer)
    if report is None:
        return 0
    allowed = set(report["allowed_cpus"])
    return len({frozenset([cpu["id"], *cpu["siblings"]]) for cpu in report["cpus"] if cpu["id"] in allowed})


def choose_num_ranks(asked: int, num_cores: int, address: str, plan: Answer) -> int:
    """Return how many ranks to run on a node: as asked, else two or one for each of its slots, and one on one core."""
    if asked > 0:
        return asked
    if num_cores < 2:
        return 1
    ranks = (parse_success(plan) or {}).get("ranks", [])
    return max(2, sum(1 for rank in ranks if rank["host"] == address))


def judge_memory(host: str, answer: Answer, min_gb_per_s: float) -> tuple[list[Check], float | None]:
    """Return whether all cores together read memory as fast as they must, and how fast they do."""
    report = parse_success(answer)
    rows = report["rows"] if report else []
    if not rows:
        return [failed(host, "memory", "memory bandwidth was measured", answer)], None
    row = max(rows, key=lambda row: row["num_threads"])
    speed = float(row["read_gb_per_s"])
    detail = f"{speed:.1f} GB/s with {row['num_threads']} threads"
    if min_gb_per_s:
        detail += f", expected at least {min_gb_per_s:g}"
    return [judged(host, "memory", "memory is fast enough", 0 < speed >= min_gb_per_s, detail, answer)], speed


def judge_memory_spread(speeds: Mapping[str, float]) -> list[Check]:
    """Return a warning for each node that reads memory at less than half the speed of the median node."""
    if len(speeds) < 2:
        return []
    median = statistics.median(speeds.values())
    return [
        Check(
            host=host,
            group="memory",
            name="memory is as fast as on other nodes",
            status="warn",
            detail=f"{speed:.1f} GB/s, the median of {len(speeds)} nodes is {median:.1f}",
        )
        for host, speed in speeds.items()
        if speed < SLOW_PART * median
    ]


def judge_shared_memory(host: str, answer: Answer) -> tuple[list[Check], dict[str, Any] | None]:
    """Return whether ranks of one node sum through shared memory, and the row of that."""
    report = parse_success(answer)
    if report is None:
        return [failed(host, "all-reduce", "ranks of the node sum", answer)], None
    rows = [row for row in report["rows"] if row["provider"] == "shm"]
    if not rows:
        detail = f"found {', '.join(sorted({row['provider'] for row in report['rows']})) or 'nothing'}, expected shm"
        return [judged(host, "all-reduce", "ranks of the node sum in shared memory", False, detail, answer)], None
    row = min(rows, key=lambda row: row["p50_us"])
    detail = f"{row['bytes']} bytes in {row['p50_us']:.1f} us at the median"
    return [judged(host, "all-reduce", "ranks of the node sum in shared memory", row["p50_us"] > 0, detail)], row


def judge_generate(host: str, answer: Answer, num_ranks: int) -> list[Check]:
    """Return whether the ranks ran where and how they should, and produced text."""
    report = parse_success(answer)
    if report is None:
        return [failed(host, "generate", "generate succeeds", answer)]
    ranks: Sequence[Mapping[str, Any]] = report["ranks"]
    texts = [output["text"] for output in report["outputs"]]
    cpus = [set(rank["cpus"]) for rank in ranks]
    disjoint = all(cpus) and not any(first & second for first, second in itertools.combinations(cpus, 2))
    providers = sorted({str(rank["comm"]) for rank in ranks})
    expected = "shm" if num_ranks > 1 else "single"

    def check(name: str, passed: bool, detail: str) -> Check:
        return judged(host, "generate", name, passed, detail, answer)

    return [
        check("every rank reports", len(ranks) == num_ranks, f"{len(ranks)} of {num_ranks} ranks"),
        check("ranks are on disjoint cores", disjoint, "; ".join(cores(rank["cpus"]) for rank in ranks)),
        check(f"ranks talk by {expected}", providers == [expected], ", ".join(providers)),
        check("there is text", bool(texts) and all(text.strip() for text in texts), f"{len(texts)} outputs"),
        check("speed was measured", report["tokens_per_s"] > 0, f"{report['tokens_per_s']:.1f} tokens/s"),
    ]
