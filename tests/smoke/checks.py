"""What a smoke run states about a node, and how a command's answer becomes such a statement."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from smoke.node import Answer

Status = Literal["pass", "warn", "fail", "skip"]
Group = Literal["node", "doctor", "hostfile", "binding", "memory", "all-reduce", "generate", "tokens"]
# In the order of the table's columns.
GROUPS: tuple[Group, ...] = ("node", "doctor", "hostfile", "binding", "memory", "all-reduce", "generate", "tokens")
# From the lightest to the heaviest.
BY_WEIGHT: tuple[Status, ...] = ("skip", "pass", "warn", "fail")
DETAIL_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Check:
    """One statement about one node, whether it holds, and what was seen. A warning does not fail the run.

    `answers` are the commands that it was judged by, for the evidence; `evidence` names the files that were kept.
    """

    host: str
    group: Group
    name: str
    status: Status
    detail: str
    answers: tuple[Answer, ...] = field(default=(), repr=False)
    evidence: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it leaves the verdict as it is."""
        return self.status != "fail"

    def to_json(self) -> dict[str, Any]:
        """Return the check as it stands in smoke.json."""
        return {
            "host": self.host,
            "group": self.group,
            "name": self.name,
            "passed": self.passed,
            "status": self.status,
            "detail": self.detail,
            "evidence": list(self.evidence),
        }


def judged(host: str, group: Group, name: str, passed: bool, detail: str, *answers: Answer) -> Check:
    """Return a check that holds or fails."""
    return Check(host=host, group=group, name=name, status="pass" if passed else "fail", detail=detail, answers=answers)


def failed(host: str, group: Group, name: str, answer: Answer) -> Check:
    """Return the check for a command that did not come to what it should."""
    return judged(host, group, name, False, last_words(answer), answer)


def parse(answer: Answer) -> dict[str, Any] | None:
    """Return the JSON object on a command's standard output, None when there is none."""
    try:
        value = json.loads(answer.stdout)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def parse_success(answer: Answer) -> dict[str, Any] | None:
    """Return the JSON object of a command that ended well, None for any other."""
    return parse(answer) if answer.exit_code == 0 else None


def last_words(answer: Answer) -> str:
    """Return the exit code and the last lines that a failed command wrote."""
    lines = (answer.stderr.strip() or answer.stdout.strip() or "it wrote nothing").splitlines()
    return f"exit code {answer.exit_code}\n" + "\n".join(lines[-DETAIL_LINES:])


def cores(ids: list[int]) -> str:
    """Return processor ids in the kernel's short form, such as `0-3,8`."""
    groups: list[list[int]] = []
    for number in sorted(ids):
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ",".join(str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups)
