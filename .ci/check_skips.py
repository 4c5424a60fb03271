"""Fails when a test run skipped something that could have run here; the argument is pytest's JUnit report.

A skip is accepted only when its reason is what the machine is: an instruction set that it lacks, cores, IPv6, not root.
Every reason begins with "this machine lacks"; one that goes on with how it is to be had is of what could have been had.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ACCEPTED = re.compile(r"(Skipped: )?this machine lacks (?!.*, to be had with )", re.DOTALL)


def unaccepted_skips(report: str) -> list[str]:
    """Return one line for each skipped test whose reason is not the hardware, with that reason."""
    root = ET.fromstring(report)  # noqa: S314 - pytest wrote this file a moment ago
    lines = []
    for case in root.iter("testcase"):
        for skipped in case.iter("skipped"):
            reason = skipped.get("message", "")
            if not ACCEPTED.match(reason):
                lines.append(f"{case.get('classname', '')}::{case.get('name', '')}: {reason}")
    return lines


def main() -> int:
    """Print what was skipped and return 1, or 0 when nothing was."""
    lines = unaccepted_skips(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for line in lines:
        print(f"skipped: {line}", file=sys.stderr)
    if lines:
        print(f"error: {len(lines)} tests that should have run here were skipped", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
