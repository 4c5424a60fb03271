"""Filters of the playbooks: pure functions over what the inventory says and what a machine reports."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

SHARED_PREFIX = "corebound"
DEFAULTS = Path(__file__).resolve().parents[2] / "inventories/defaults"
SHARED_FILE = DEFAULTS / "group_vars/all/corebound.yml"
GROUPS_FILE = DEFAULTS / "hosts.yml"


def role_options(roles_dir: str) -> dict[str, list[str]]:
    """Return role -> names of its variables, from the argument specifications; `corebound` are the shared ones."""
    options = {SHARED_PREFIX: sorted(yaml.safe_load(SHARED_FILE.read_text(encoding="utf-8")))}
    for path in sorted(Path(roles_dir).glob("*/meta/argument_specs.yml")):
        entry_points = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values()
        options[path.parents[1].name] = sorted({name for entry in entry_points for name in entry.get("options") or {}})
    return options


def unknown_variables(names: Iterable[str], options: dict[str, list[str]]) -> list[str]:
    """Return one sentence for each variable that carries a role's prefix but is none of its variables."""
    sentences = []
    for name in sorted(names):
        role = max((role for role in options if name.startswith(f"{role}_")), key=len, default=None)
        if role is None or name in options[role]:
            continue
        near = difflib.get_close_matches(name, options[role], n=1)
        remedy = f"did you mean {near[0]}?" if near else f"there are: {', '.join(options[role])}"
        sentences.append(f"unknown variable {name}: {remedy}")
    return sentences


def unknown_groups(names: Iterable[str], own: Iterable[str], roles: Iterable[str]) -> list[str]:
    """Return one sentence for each group that neither Corebound nor the site (`own`) knows."""
    known = [*yaml.safe_load(GROUPS_FILE.read_text(encoding="utf-8"))["all"]["children"]]
    sentences = []
    for name in sorted(set(names) - {*known, *own, "all", "ungrouped"}):
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
        if name in roles:
            remedy = "that role always runs, on the group nodes; remove the group"
        sentences.append(f"unknown group {name}: {remedy}")
    return sentences


def count_ids(text: str) -> int:
    """Return how many ids a kernel list such as `0-3,8` names; an empty list names none."""
    total = 0
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            total += int(last or first) - int(first) + 1
    return total


def checksums(files: Iterable[dict[str, Any]], root: str) -> dict[str, str]:
    """Return path relative to `root` -> SHA-256 of the files that ansible.builtin.find found below it."""
    return {str(Path(item["path"]).relative_to(root)): str(item["checksum"]) for item in files}


def tree_checksums(root: str) -> dict[str, str]:
    """Return path relative to `root` -> SHA-256 of the model's files on this machine; an absent folder has none.

    Links are followed: the folders of a Hugging Face cache hold nothing else. Hidden files and Python sources are left
    out, since no model needs them.
    """
    found = {}
    for path in sorted(Path(root).rglob("*")):
        parts = path.relative_to(root).parts
        if not path.is_file() or path.suffix in {".py", ".pyc"} or any(part.startswith(".") for part in parts):
            continue
        with path.open("rb") as file:
            found["/".join(parts)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def damaged(manifest: str, found: dict[str, str]) -> list[str]:
    """Return the files that the text of a corebound-manifest.json names and that are missing or have another hash."""
    files = json.loads(manifest)["files"]
    return sorted(name for name, entry in files.items() if found.get(name) != entry["sha256"])


def bundle_wheels(manifest: str, group: str) -> dict[str, str]:
    """Return file name -> SHA-256 of the wheels that the text of a bundle's MANIFEST.json has for a group."""
    start = f"wheels/{group}/"
    files = json.loads(manifest)["files"]
    return {name.removeprefix(start): entry["sha256"] for name, entry in files.items() if name.startswith(start)}


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return one sentence for each file whose hash is not the expected one, or that is there against expectation."""
    return [
        f"{name}: expected {expected.get(name, 'no such file')}, found {found.get(name, 'no such file')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def clock_check(skew_s: float, within_s: float, max_skew_s: float) -> dict[str, str]:
    """Return the check of a clock that is `skew_s` ahead of this machine's, measured to `within_s` seconds.

    What the measurement cannot tell from a right clock passes: a slow connection is no wrong clock.
    """
    found = f"the clock is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} that of this machine"
    found += f" (measured within {within_s:.1f} s)"
    if abs(skew_s) - within_s <= max_skew_s:
        return {"name": "clock", "status": "pass", "detail": found, "hint": ""}
    hint = "synchronise it: systemctl enable --now systemd-timesyncd, or chrony"
    return {"name": "clock", "status": "fail", "detail": f"{found}, expected at most {max_skew_s:g} s", "hint": hint}


def judged(checks: Iterable[dict[str, str]], policies: dict[str, object]) -> list[dict[str, str]]:
    """Return the checks by policy: `warn` makes a failure milder, `off` leaves the check out.

    YAML reads a bare off as false, which therefore means the same.
    """
    result = []
    for check in checks:
        policy = policies.get(check["name"], "fail")
        if policy in ("off", "False", False):
            continue
        milder = check["status"] == "fail" and policy == "warn"
        result.append({**check, "status": "warn"} if milder else check)
    return result


def without_passwords(text: str) -> str:
    """Return a program's words with user names and passwords in URLs blanked out."""
    return re.sub(r"(://)[^/\s@]+@", r"\1****@", text)


def unit_word(word: str, expands: bool = True) -> str:
    """Return a word as a systemd unit takes it, quoted and literal; Environment= expands no variables, commands do."""
    quoted = json.dumps(str(word), ensure_ascii=False).replace("%", "%%")
    return quoted.replace("$", "$$") if expands else quoted


def next_in_ring(names: Sequence[str], name: str, num_next: int) -> list[str]:
    """Return the so many names that follow `name` in the list, the first following the last, and never itself."""
    place = names.index(name)
    return [*names[place + 1 :], *names[:place]][:num_next]


class FilterModule:
    """The names under which playbooks use the functions above."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter name -> function."""
        return {
            "corebound_role_options": role_options,
            "corebound_unit_word": unit_word,
            "corebound_unknown_groups": unknown_groups,
            "corebound_unknown_variables": unknown_variables,
            "corebound_count_ids": count_ids,
            "corebound_checksums": checksums,
            "corebound_bundle_wheels": bundle_wheels,
            "corebound_damaged": damaged,
            "corebound_differences": differences,
            "corebound_tree_checksums": tree_checksums,
            "corebound_without_passwords": without_passwords,
            "corebound_clock_check": clock_check,
            "corebound_judged": judged,
            "corebound_next_in_ring": next_in_ring,
        }
