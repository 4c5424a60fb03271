"""Judges what one node reported. Pure: text in, checks out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smoke.targets import Answer

EVIDENCE_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Check:
    """One statement about one node, whether it holds, and what was seen."""

    host: str
    name: str
    passed: bool
    detail: str


def parse(answer: Answer) -> dict[str, Any] | None:
    """Return the JSON object on a command's standard output, None when there is none."""
    try:
        value = json.loads(answer.stdout)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def evidence(answer: Answer) -> str:
    """Return the exit code and the last lines that a failed command wrote."""
    lines = (answer.stderr.strip() or answer.stdout.strip() or "it wrote nothing").splitlines()
    return f"exit code {answer.exit_code}\n" + "\n".join(lines[-EVIDENCE_LINES:])


def judge_doctor(host: str, answer: Answer) -> list[Check]:
    """Return whether the node's own diagnosis found nothing that fails."""
    report = parse(answer)
    if report is None:
        return [Check(host=host, name="doctor answers", passed=False, detail=evidence(answer))]
    failed = [f"{item['name']}: {item['detail']}" for item in report["checks"] if item["status"] == "fail"]
    detail = "; ".join(failed) or f"{len(report['checks'])} checks"
    return [Check(host=host, name="doctor finds nothing that fails", passed=not failed, detail=detail)]


def judge_hostfile(host: str, answer: Answer, num_nodes: int) -> list[Check]:
    """Return whether the launcher reads the delivered hostfile and finds every node in it."""
    plan = parse(answer) if answer.exit_code == 0 else None
    if plan is None:
        return [Check(host=host, name="hostfile is understood", passed=False, detail=evidence(answer))]
    hosts = sorted({str(rank["host"]) for rank in plan["ranks"]})
    detail = f"{len(plan['ranks'])} ranks on {', '.join(hosts)}"
    return [Check(host=host, name="hostfile is understood", passed=len(hosts) == num_nodes, detail=detail)]


def num_physical_cores(answer: Answer) -> int:
    """Return how many whole cores a node's `corebound topology --json` lists; 0 where it does not say."""
    report = parse(answer) if answer.exit_code == 0 else None
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
    ranks = (parse(plan) or {}).get("ranks", []) if plan.exit_code == 0 else []
    return max(2, sum(1 for rank in ranks if rank["host"] == address))


def judge_generate(host: str, answer: Answer, num_ranks: int) -> list[Check]:
    """Return whether the ranks ran where and how they should, and produced text."""
    report = parse(answer) if answer.exit_code == 0 else None
    if report is None:
        return [Check(host=host, name="generate succeeds", passed=False, detail=evidence(answer))]
    ranks: Sequence[Mapping[str, Any]] = report["ranks"]
    texts = [output["text"] for output in report["outputs"]]
    cpus = [set(rank["cpus"]) for rank in ranks]
    disjoint = all(cpus) and not any(first & second for first, second in itertools.combinations(cpus, 2))
    providers = sorted({str(rank["comm"]) for rank in ranks})
    expected = "shm" if num_ranks > 1 else "single"

    def check(name: str, passed: bool, detail: str) -> Check:
        return Check(host=host, name=name, passed=passed, detail=detail)

    return [
        check("every rank reports", len(ranks) == num_ranks, f"{len(ranks)} of {num_ranks} ranks"),
        check("ranks are on disjoint cores", disjoint, "; ".join(cores(rank["cpus"]) for rank in ranks)),
        check(f"ranks talk by {expected}", providers == [expected], ", ".join(providers)),
        check("there is text", bool(texts) and all(text.strip() for text in texts), f"{len(texts)} outputs"),
        check("speed was measured", report["tokens_per_s"] > 0, f"{report['tokens_per_s']:.1f} tokens/s"),
    ]


def cores(ids: Sequence[int]) -> str:
    """Return processor ids in the kernel's short form, such as `0-3,8`."""
    groups: list[list[int]] = []
    for number in sorted(ids):
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ",".join(str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups)
