"""`python -m smoke`: visit every node of a target list, judge and write the report; or show a report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from smoke.table import show
from smoke.targets import Target, read_targets, run_on
from smoke.verdict import (
    Check,
    choose_num_ranks,
    cores,
    judge_doctor,
    judge_generate,
    judge_hostfile,
    num_physical_cores,
    parse,
)

LOG_COLUMNS = 140


def generate_words(target: Target, num_ranks: int) -> list[str]:
    """Return the command that continues the prompts on so many core-bound ranks."""
    words = [target.command, "generate", "--json", "--bind_cores_to_rank", "--model", target.model]
    words += ["--num_accelerators", str(num_ranks), "--dtype", target.dtype]
    words += ["--max-new-tokens", str(target.max_new_tokens)]
    for prompt in target.prompts:
        words += ["--prompt", prompt]
    return words


def plan_words(target: Target) -> list[str]:
    """Return the command that reads the hostfile without starting anything."""
    return [target.command, "plan", "--json", "--hostfile", target.hostfile, "--no_python", "true"]


def visit(target: Target, num_nodes: int) -> tuple[dict[str, Any], list[Check], list[dict[str, Any]]]:
    """Run everything on one node and return its row, its checks and its outputs."""
    checks = judge_doctor(target.host, run_on(target, [target.command, "doctor", "--json"]))
    plan = run_on(target, plan_words(target))
    checks += judge_hostfile(target.host, plan, num_nodes)
    num_cores = num_physical_cores(run_on(target, [target.command, "topology", "--json"]))
    num_ranks = choose_num_ranks(target.num_ranks, num_cores, target.address, plan)
    answer = run_on(target, generate_words(target, num_ranks))
    checks += judge_generate(target.host, answer, num_ranks)
    report = parse(answer) or {}
    ranks = report.get("ranks", [])
    row = {
        "host": target.host,
        "num_ranks": len(ranks),
        "cores": [cores(rank["cpus"]) for rank in ranks],
        "isa": sorted({rank["isa"] for rank in ranks}),
        "comm": sorted({rank["comm"] for rank in ranks}),
        **{name: report.get(name) for name in ("ready_s", "first_token_ms", "next_token_ms", "tokens_per_s")},
        "ranks": ranks,
        "verdict": "pass" if all(check.passed for check in checks) else "fail",
    }
    return row, checks, [{"host": target.host, **output} for output in report.get("outputs", [])]


def not_visited(host: str) -> tuple[dict[str, Any], list[Check], list[dict[str, Any]]]:
    """Return row and check of a node that was lost before the visit: nothing measured, and failed."""
    detail = "Ansible could not prepare the visit; its output says why (unreachable, not deployed, ...)"
    unmeasured: dict[str, Any] = dict.fromkeys(("ready_s", "first_token_ms", "next_token_ms", "tokens_per_s"))
    row: dict[str, Any] = {
        "host": host,
        "num_ranks": 0,
        "cores": [],
        "isa": [],
        "comm": [],
        **unmeasured,
        "ranks": [],
        "verdict": "fail",
    }
    return row, [Check(host=host, name="node can be visited", passed=False, detail=detail)], []


def smoke(targets: list[Target], missing: Sequence[str] = ()) -> dict[str, Any]:
    """Visit all nodes at once and return the report; one node's failure does not hide another's."""
    num_nodes = len(targets) + len(missing)
    with ThreadPoolExecutor(max_workers=max(1, len(targets))) as pool:
        visits = list(pool.map(lambda target: visit(target, num_nodes), targets))
    visits += [not_visited(host) for host in missing]
    checks = [check for _, host_checks, _ in visits for check in host_checks]
    return {
        "verdict": "pass" if checks and all(check.passed for check in checks) else "fail",
        "hosts": [row for row, _, _ in visits],
        "checks": [asdict(check) for check in checks],
        "outputs": [output for _, _, outputs in visits for output in outputs],
    }


def main() -> int:
    """Return 0 when everything passed, 1 when a check failed."""
    parser = argparse.ArgumentParser(prog="smoke", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", type=Path, help="the nodes, as the cluster_tests role wrote them down")
    parser.add_argument("--missing", action="append", default=[], metavar="HOST", help="a node that cannot be visited")
    parser.add_argument("--report", type=Path, help="where the report goes")
    parser.add_argument("--show", type=Path, metavar="REPORT", help="print a report and return its verdict")
    options = parser.parse_args()
    if options.show:
        report = json.loads(options.show.read_text(encoding="utf-8"))
        # A pipe has no width; the rows of a log are better long than folded.
        show(report, Console() if sys.stdout.isatty() else Console(width=LOG_COLUMNS))
        return 0 if report["verdict"] == "pass" else 1
    if not options.targets or not options.report:
        parser.error("--targets and --report, or --show")
    report = smoke(read_targets(options.targets), options.missing)
    options.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for check in report["checks"]:
        if not check["passed"]:
            print(f"failed on {check['host']}: {check['name']}: {check['detail']}", file=sys.stderr)
    return 0 if report["verdict"] == "pass" else 1


if __name__ == "__main__":
    sys.exit(main())
