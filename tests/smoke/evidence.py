"""Keeps what a node itself has to say about a failure: commands, journal, kernel log, rank logs. Never secrets."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from smoke.checks import Check
from smoke.node import Answer, Node
from smoke.targets import Target

FOLDER = "evidence"
TIMEOUT_S = 30
MAX_LINES = 200
MAX_LINE_LENGTH = 2000
LOG_LINES = "100"
TOGETHER = ("binding", "all-reduce", "tokens")  # groups of checks that several nodes take part in
KERNEL_LINES = re.compile(r"out of memory|oom|killed process|segfault|general protection|machine check", re.IGNORECASE)
SECRETS = re.compile(
    r"((?:[\w-]*(?:secret|token|passw(?:or)?d|api[_-]?key|credential|authorization)[\w-]*)[\"']?\s*[=:]\s*)"
    r"(?:(?:bearer|basic)\s+)?[\"']?[^\s\"',}]{4,}[\"']?",
    re.IGNORECASE,
)
COUNT_OF_TOKENS = re.compile(r"(tokens?[\"']?\s*[=:]\s*)\d+\b", re.IGNORECASE)
WELL_KNOWN = re.compile(r"\b(?:hf_|ghp_|gho_|github_pat_|sk-|xox[bap]-|AKIA)[A-Za-z0-9_-]{8,}")
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def without_secrets(text: str) -> str:
    """Return a text with what looks like a secret replaced by stars; a mere count of tokens stays."""
    text = WELL_KNOWN.sub("***", PRIVATE_KEY.sub("***", text))

    def hide(match: re.Match[str]) -> str:
        return match[0] if COUNT_OF_TOKENS.fullmatch(match[0]) else f"{match[1]}***"

    return SECRETS.sub(hide, text)


def trimmed(text: str) -> str:
    """Return the last lines of a text, none longer than a screen or two."""
    lines = text.rstrip().splitlines()
    cut = [f"[{len(lines) - MAX_LINES} lines before]"] if len(lines) > MAX_LINES else []
    return "\n".join([*cut, *(line[:MAX_LINE_LENGTH] for line in lines[-MAX_LINES:])]) + "\n"


def keep(folder: Path, name: str, text: str) -> str:
    """Write one file of evidence for a host and return its path, relative to the reports folder."""
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Secrets go first: a cut through one would hide what it is.
    path.write_text(trimmed(without_secrets(text)), encoding="utf-8")
    return str(path.relative_to(folder.parents[1]))


def of_answers(check: Check) -> str:
    """Return a failed check in full: what was expected, and the whole of what each command said."""
    parts = [f"{check.host}: {check.name}: {check.detail}"]
    for answer in check.answers:
        parts.append(f"$ {answer.command}\nexit code {answer.exit_code}\n{answer.stdout}\n{answer.stderr}")
    return "\n\n".join(parts)


def node_evidence(target: Target, log_prefix: str, make_node: Callable[[Target], Node] = Node) -> dict[str, str]:
    """Return what a node says of the last minutes, by the name of the file that it goes to; nothing if it is lost."""
    node = make_node(target)
    since = f"--since=-{target.evidence_minutes}min"
    journal = ["journalctl", "--no-pager", "--quiet", since, f"--lines={MAX_LINES}"]
    try:
        found = {
            "journal-ssh": _said(node.run_as_root([*journal, "--unit=ssh", "--unit=sshd"], TIMEOUT_S)),
            "journal-kernel": _said(node.run_as_root([*journal, "--dmesg"], TIMEOUT_S), KERNEL_LINES),
            "rank-logs": _said(node.run_as_root(_rank_logs(log_prefix), TIMEOUT_S)),
        }
        return {} if node.lost else {name: text for name, text in found.items() if text}
    finally:
        node.close()


def _rank_logs(log_prefix: str) -> list[str]:
    script = f'for log in "$1"-*/*.log; do [ ! -f "$log" ] || tail -v -n {LOG_LINES} "$log"; done'
    return ["sh", "-c", script, "sh", log_prefix]


def _said(answer: Answer, only: re.Pattern[str] | None = None) -> str:
    """Return a command's output, or that it cannot be read; empty where there is nothing to see."""
    if answer.exit_code != 0:
        return f"not readable: {answer.command}\n{answer.stderr}"
    lines = [line for line in answer.stdout.splitlines() if only is None or only.search(line)]
    return "\n".join(lines)


def collect(
    checks: Sequence[Check], targets: Sequence[Target], log_prefix: str, reports: Path, everywhere: bool
) -> list[Check]:
    """Return the checks with the files that were kept for those that failed.

    `everywhere`: a launch over all nodes has failed, whose reason may lie on any of them.
    """
    if (reports / FOLDER).exists():
        shutil.rmtree(reports / FOLDER)
    failing = {check.host for check in checks if not check.passed}
    asked = [target for target in targets if failing and (everywhere or target.host in failing)]
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        said = dict(
            zip((t.host for t in asked), pool.map(lambda target: node_evidence(target, log_prefix), asked), strict=True)
        )
    files = {
        host: [keep(reports / FOLDER / host, name, text) for name, text in texts.items()]
        for host, texts in said.items()
    }
    shared = [name for names in files.values() for name in names]
    kept = []
    for check in checks:
        if check.passed:
            kept.append(check)
            continue
        own = keep(reports / FOLDER / check.host, check.name, of_answers(check))
        more = (
            shared if everywhere and check.group in ("binding", "all-reduce", "tokens") else files.get(check.host, [])
        )
        kept.append(replace(check, evidence=(own, *more)))
    return kept
