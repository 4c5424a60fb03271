"""Sets files of the kernel and stops services as asked, remembers what was there before, and puts that back.

Needs nothing but Python. The role runs it, and so does the machine at every start, by a unit that the role installs. In
the folder --dir, settings.json holds what is wanted and original.json what was found before the first change. Standard
output is one JSON line: {"changed": bool, "changes": [...], "notes": [...], "problems": [...]}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def chosen(text: str) -> str:
    """Return the word in brackets of `always [madvise] never`; other files hold just their value."""
    words = text.split()
    return next((word.strip("[]") for word in words if word.startswith("[")), " ".join(words))


def systemctl(*words: str) -> str:
    """Return what systemctl says; raises when it fails."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"systemctl {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def service_state(name: str) -> dict[str, bool] | None:
    """Return whether a service runs and whether it is started with the machine; None if there is no such service."""
    shown = systemctl("show", "--property=LoadState,ActiveState,UnitFileState", name)
    state = dict(line.partition("=")[::2] for line in shown.splitlines())
    if state.get("LoadState") != "loaded":
        return None
    active = state.get("ActiveState") in ("active", "activating", "reloading")
    return {"active": active, "enabled": state.get("UnitFileState") == "enabled"}


@dataclass
class Tuner:
    """One run: `folder` keeps what was there before, `root` is the folder in which sys and proc are."""

    folder: Path
    root: Path = Path("/")
    dry: bool = False
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read what was there before."""
        self.kept: dict[str, dict[str, Any]] = {"kernel": {}, "services": {}}
        if (self.folder / "original.json").exists():
            self.kept.update(json.loads((self.folder / "original.json").read_text(encoding="utf-8")))

    def apply(self, kernel: dict[str, str], services: list[str]) -> None:
        """Set the files (patterns below the root -> value), stop the services, put back what is no longer wanted."""
        wanted: dict[str, str] = {}
        for pattern, value in kernel.items():
            paths = sorted(self.root.glob(pattern))
            if not paths:
                self.notes.append(f"/{pattern} is not there: this kernel or machine has no such setting")
            wanted.update({str(path.relative_to(self.root)): value for path in paths})
        for name in [name for name in self.kept["kernel"] if name not in wanted]:
            self._restore_file(name)
        for name, value in wanted.items():
            found = chosen((self.root / name).read_text(encoding="utf-8"))
            if found != value:
                self._keep("kernel", name, found)
                self._write(name, found, value)
        for name in [name for name in self.kept["services"] if name not in services]:
            self._restore_service(name)
        for name in services:
            self._stop(name)

    def restore(self) -> None:
        """Put everything back and forget it."""
        for name in list(self.kept["kernel"]):
            self._restore_file(name)
        for name in list(self.kept["services"]):
            self._restore_service(name)

    def report(self) -> dict[str, Any]:
        """Return what happened."""
        return {
            "changed": bool(self.changes),
            "changes": self.changes,
            "notes": self.notes,
            "problems": self.problems,
        }

    def _keep(self, kind: str, name: str, value: Any) -> None:
        """Remember what was there before the first change; later ones do not count."""
        self.kept[kind].setdefault(name, value)
        self._save()

    def _forget(self, kind: str, name: str) -> None:
        del self.kept[kind][name]
        self._save()

    def _save(self) -> None:
        if self.dry:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = self.folder / "original.json.new"
        whole.write_text(json.dumps(self.kept, indent=1) + "\n", encoding="utf-8")
        whole.replace(self.folder / "original.json")

    def _write(self, name: str, found: str, value: str) -> bool:
        path = self.root / name
        try:
            if not self.dry:
                path.write_text(f"{value}\n", encoding="utf-8")
                now = chosen(path.read_text(encoding="utf-8"))
                if now != value:
                    self.problems.append(f"/{name}: found {now} after writing, expected {value}")
                    return False
        except OSError as error:
            self.problems.append(f"/{name}: found {found}, expected {value}, cannot write: {error.strerror}")
            return False
        self.changes.append(f"/{name}: {found} -> {value}")
        return True

    def _restore_file(self, name: str) -> None:
        path, value = self.root / name, self.kept["kernel"][name]
        if not path.exists():
            self.notes.append(f"/{name} is gone, so it is not set back to {value}")
        elif (found := chosen(path.read_text(encoding="utf-8"))) != value and not self._write(name, found, value):
            return
        self._forget("kernel", name)

    def _stop(self, name: str) -> None:
        try:
            state = service_state(name)
            if state is None:
                self.notes.append(f"{name} is not installed, so it is not stopped")
            elif state["active"] or state["enabled"]:
                self._keep("services", name, state)
                if not self.dry:
                    systemctl("disable", "--now", "--quiet", name)
                self.changes.append(f"{name}: stopped and disabled")
        except OSError as error:
            self.problems.append(str(error))

    def _restore_service(self, name: str) -> None:
        before = self.kept["services"][name]
        try:
            if service_state(name) is not None and not self.dry:
                if before["enabled"]:
                    systemctl("enable", "--quiet", name)
                if before["active"]:
                    systemctl("start", name)
        except OSError as error:
            self.problems.append(str(error))
            return
        self.changes.append(f"{name}: as before")
        self._forget("services", name)


def main() -> int:
    """Apply or restore, print the JSON line, and return 1 when something could not be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=["apply", "restore"])
    parser.add_argument("--dir", type=Path, required=True, help="folder of settings.json and original.json")
    parser.add_argument("--settings", help="what settings.json would hold, to be taken in its place")
    parser.add_argument("--check", action="store_true", help="change nothing, say what would change")
    options = parser.parse_args()
    tuner = Tuner(options.dir, dry=options.check)
    if options.verb == "restore":
        tuner.restore()
    else:
        text = options.settings or (options.dir / "settings.json").read_text(encoding="utf-8")
        settings = json.loads(text)
        tuner.apply(settings["kernel"], settings.get("services", []))
    print(json.dumps(tuner.report()))
    return 1 if tuner.problems else 0


if __name__ == "__main__":
    sys.exit(main())
