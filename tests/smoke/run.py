"""One smoke run: every node by itself and all of them together, judged and reported."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from smoke import evidence
from smoke.across import Across, gather, judge_references, run_across
from smoke.checks import Check
from smoke.node import Node
from smoke.targets import Target
from smoke.verdict import judge_hostfiles_agree, judge_memory_spread
from smoke.visit import Visit, row, row_of_missing, visit


def smoke(targets: Sequence[Target], missing: Sequence[str], reports: Path) -> dict[str, Any]:
    """Visit all nodes at once, then start launches across them, and return the report.

    One node's failure does not hide another's. Evidence of failures goes below `reports`.
    """
    num_nodes = len(targets) + len(missing)
    log_prefix = f"/tmp/corebound-smoke-{secrets.token_hex(6)}"
    visits = [Visit(Node(target), log_prefix) for target in targets]
    try:
        # Nodes have different commands and some are this machine, which is more than fabric's ThreadingGroup can run.
        with ThreadPoolExecutor(max_workers=max(1, len(visits))) as pool:
            list(pool.map(lambda this: visit(this, num_nodes), visits))
        across = gather(visits)
        run_across(across)
        checks = [check for this in visits for check in this.checks]
        checks += judge_hostfiles_agree({this.target.host: this.launch for this in visits if this.launch})
        checks += judge_memory_spread(
            {this.target.host: this.memory_gb_per_s for this in visits if this.memory_gb_per_s is not None}
        )
        checks += judge_references(visits) + across.checks
        absent = [row_of_missing(host) for host in missing]
        checks += [check for _, check in absent]
        together = any(not check.passed for check in across.checks)
        checks = evidence.collect(checks, targets, log_prefix, reports, together)
        return _report(visits, across, checks, [row for row, _ in absent])
    finally:
        _clean_up(visits, log_prefix)


def _report(
    visits: Sequence[Visit], across: Across, checks: Sequence[Check], absent: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    outputs = [{"host": this.target.host, **output} for this in visits for output in this.generated.get("outputs", [])]
    rows = [row(this, [check for check in checks if check.host == this.target.host]) for this in visits]
    return {
        "verdict": "pass" if checks and all(check.passed for check in checks) else "fail",
        "hosts": [*rows, *absent],
        "checks": [check.to_json() for check in checks],
        "outputs": outputs,
        "binding": across.ranks,
        "across_nodes": across.to_json(),
        "commands": [
            {"host": this.target.host, "command": a.command, "exit_code": a.exit_code, "seconds": round(a.seconds, 2)}
            for this in visits
            for a in this.node.answers
        ],
    }


def _clean_up(visits: Sequence[Visit], log_prefix: str) -> None:
    """Remove the rank logs from the nodes: those of launches across nodes belong to the user of the jobs."""
    for this in visits:
        if not this.node.lost:
            this.node.run_as_root(["sh", "-c", 'rm -rf "$1"-*', "sh", log_prefix], evidence.TIMEOUT_S)
        this.node.close()
