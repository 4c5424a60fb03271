"""Runs playbooks in tests, as the make targets do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    """Returns the environment of a playbook run: no colours, UTF-8, this repository's ansible.cfg."""
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_FILTER_PLUGINS": str(ROOT / "playbooks/filter_plugins"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_ROLES_PATH": str(ROOT / "playbooks/roles"),
        "LC_ALL": "C.UTF-8",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }


def run_tool(*words: str | Path, timeout_s: float = 110) -> subprocess.CompletedProcess[str]:
    """Returns what one of Ansible's commands came to."""
    command = [str(BIN / str(words[0])), *(str(word) for word in words[1:])]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def run_playbook(
    playbook: str, inventory: Path, *options: str, timeout_s: float = 110, **extra: Any
) -> subprocess.CompletedProcess[str]:
    """Returns what a playbook came to on the default inventory and `inventory`, with options and extra variables."""
    words: list[str | Path] = ["ansible-playbook", "-i", "inventories/defaults", "-i", inventory]
    words += ["--extra-vars", json.dumps(extra), *options, f"playbooks/{playbook}"]
    return run_tool(*words, timeout_s=timeout_s)


def recap(output: str, host: str = "localhost") -> dict[str, int]:
    """Returns the numbers of a host's line in the play recap."""
    line = re.findall(rf"^{re.escape(host)}\s+: (.*)$", output, flags=re.MULTILINE)
    assert line, f"no recap for {host} in:\n{output}"
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line[-1])}


def changed_tasks(output: str, host: str) -> list[str]:
    """Returns the names of the tasks that changed something on a host."""
    found, task = [], ""
    for line in output.splitlines():
        if line.startswith("TASK ["):
            task = line[6:].partition("]")[0]
        elif line.startswith(f"changed: [{host}]"):
            found.append(task)
    return list(dict.fromkeys(found))
