"""Lists what of Corebound runs on a machine: processes of launches, and the services named. Changes nothing.

Needs nothing but Python. Standard output is one JSON line: {"runs": ["job ... (pids ...): command", ...]}. Who is not
root sees its own processes only.
"""

from __future__ import annotations

import json
import pwd
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MARK = b"COREBOUND_JOB_ID="
SHOWN_CHARACTERS = 80
ENDED = ("inactive", "failed", "unknown")


def user_name(uid: int) -> str:
    """Return the name of a user, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def jobs(proc: Path) -> list[str]:
    """Return one line for each launch that has processes here: job, processes, user and command."""
    found: dict[str, list[int]] = {}
    lines = []
    for folder in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            environ = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # not ours to read, or gone by now
            continue
        job = next((entry[len(MARK) :].decode() for entry in environ if entry.startswith(MARK)), "")
        if job:
            found.setdefault(job, []).append(int(folder.name))
    for job, pids in found.items():
        first = proc / str(pids[0])
        try:
            command = (first / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            user = user_name(first.stat().st_uid)
        except OSError:
            continue
        shown = ", ".join(map(str, pids))
        lines.append(f"job {job} (user {user}, pids {shown}): {command[:SHOWN_CHARACTERS]}")
    return lines


def services(units: Sequence[str]) -> list[str]:
    """Return one line for each of the units that is active, or about to be."""
    if not units or shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        return []
    lines = []
    for unit in units:
        asked = subprocess.run(["systemctl", "is-active", unit], capture_output=True, text=True, check=False)
        state = asked.stdout.strip()
        if state and state not in ENDED:
            lines.append(f"service {unit} is {state}")
    return lines


def main() -> None:
    """Print what runs; the arguments are the units to ask for."""
    print(json.dumps({"runs": jobs(Path("/proc")) + services(sys.argv[1:])}))


if __name__ == "__main__":
    main()
