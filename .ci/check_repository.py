"""Checks the project's own rules over every tracked file: roles, sizes, machine-specific text, documented variables."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
LARGEST_BYTES = 500_000
LARGE_ON_PURPOSE = re.compile(r"^runtime/corebound/demo/.*\.safetensors$")
ROLE_PARTS = ("defaults/main.yml", "meta/argument_specs.yml", "tasks/main.yml", "README.md")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME)\b|:latest\b")


def tracked_files() -> list[str]:
    """Return the tracked files that exist, relative to the root."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def role_problems(roles: Path) -> Iterator[str]:
    """Yield where a role lacks a part, or its defaults and its argument specification name different variables."""
    for role in sorted(path for path in roles.iterdir() if path.is_dir()):
        parts = {name: role / name for name in ROLE_PARTS}
        missing = [name for name, path in parts.items() if not path.is_file()]
        if missing:
            yield f"{role.name}: missing {', '.join(missing)}"
            continue
        defaults = set(yaml.safe_load(parts["defaults/main.yml"].read_text(encoding="utf-8")) or {})
        specs = yaml.safe_load(parts["meta/argument_specs.yml"].read_text(encoding="utf-8"))["argument_specs"]
        options = specs["main"].get("options") or {}
        readme = parts["README.md"].read_text(encoding="utf-8")
        for name in sorted(defaults - set(options)):
            yield f"{role.name}: {name} is in defaults/main.yml but not in meta/argument_specs.yml"
        for name in sorted(set(options) - defaults):
            if not options[name].get("required"):
                yield f"{role.name}: {name} is in meta/argument_specs.yml but not in defaults/main.yml"
        for name in sorted(set(options)):
            if not name.startswith(f"{role.name}_"):
                yield f"{role.name}: {name} does not start with the role's name"
            if not options[name].get("description"):
                yield f"{role.name}: {name} has no description in meta/argument_specs.yml"
            if name not in readme:
                yield f"{role.name}: {name} is not in README.md"


def places_of_this_machine() -> list[str]:
    """Return the folders that only this machine has: this checkout, the user's home and pip's own wheel folders."""
    home = Path.home()
    places = [f"{ROOT}/", *([] if home == Path("/root") else [f"{home}/"])]
    return places + [link.rstrip("/") for link in os.environ.get("PIP_FIND_LINKS", "").split() if link.startswith("/")]


def file_problems(name: str, path: Path, places: list[str]) -> Iterator[str]:
    """Yield what is wrong with one file: too large, tied to one machine, or marked as unfinished."""
    size = path.stat().st_size
    if size > LARGEST_BYTES and not LARGE_ON_PURPOSE.match(name):
        yield f"{name}: {size} bytes, at most {LARGEST_BYTES} are allowed"
        return
    data = path.read_bytes()
    if b"\0" in data or name == ".ci/check_repository.py":
        return
    for number, line in enumerate(data.decode("utf-8").splitlines(), start=1):
        for place in places:
            if place in line:
                yield f"{name}:{number}: names a place of one machine: {line.strip()[:80]}"
        if UNFINISHED.search(line):
            yield f"{name}:{number}: unfinished work or an unpinned image: {line.strip()[:80]}"


def environment_variables(source: str) -> list[str]:
    """Return the keys of VARIABLES in the source of config/env.py, read without importing it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "VARIABLES":
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return [str(ast.literal_eval(key)) for key in keys if key is not None]
    return []


def documentation_problems(root: Path) -> Iterator[str]:
    """Yield the COREBOUND_ variables that docs/configuration.md does not explain, or explains without need."""
    known = set(environment_variables((root / "runtime/corebound/config/env.py").read_text(encoding="utf-8")))
    text = (root / "docs/configuration.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(COREBOUND_[A-Z_]+)`", text))
    if not known:
        yield "runtime/corebound/config/env.py: no VARIABLES table found"
    for name in sorted(known - documented):
        yield f"docs/configuration.md: {name} is missing"
    for name in sorted(documented - known):
        yield f"docs/configuration.md: {name} is not a variable that Corebound reads"


def main() -> int:
    """Print every problem and return 1, or return 0 when there is none."""
    problems = [*role_problems(ROOT / "playbooks/roles"), *documentation_problems(ROOT)]
    places = places_of_this_machine()
    for name in tracked_files():
        problems.extend(file_problems(name, ROOT / name, places))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
