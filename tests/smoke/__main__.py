"""`python -m smoke`: visit every node of a target list, judge and write the report; or show a report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from smoke.run import smoke
from smoke.table import show
from smoke.targets import read_targets

LOG_COLUMNS = 140


def main() -> int:
    """Return 0 when everything passed, 1 when a check failed."""
    parser = argparse.ArgumentParser(prog="smoke", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", type=Path, help="the nodes, as the cluster_tests role wrote them down")
    parser.add_argument("--missing", action="append", default=[], metavar="HOST", help="a node that cannot be visited")
    parser.add_argument("--report", type=Path, help="where the report goes; evidence of failures goes beside it")
    parser.add_argument("--show", type=Path, metavar="REPORT", help="print a report and return its verdict")
    options = parser.parse_args()
    if options.show:
        report = json.loads(options.show.read_text(encoding="utf-8"))
        # A pipe has no width; the rows of a log are better long than folded.
        show(report, Console() if sys.stdout.isatty() else Console(width=LOG_COLUMNS), options.show.parent)
        return 0 if report["verdict"] == "pass" else 1
    if not options.targets or not options.report:
        parser.error("--targets and --report, or --show")
    report = smoke(read_targets(options.targets), options.missing, options.report.parent)
    options.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for check in report["checks"]:
        if not check["passed"]:
            print(f"failed on {check['host']}: {check['name']}: {check['detail']}", file=sys.stderr)
    return 0 if report["verdict"] == "pass" else 1


if __name__ == "__main__":
    sys.exit(main())
