"""Builds the wheel of the IPEX flavour: the same sources for the one torch that IPEX is bound to; docs/ipex.md.

Goes into a folder of its own with wheel.json and requirements.txt, like build_wheel.py, and likewise builds nothing
when the sources are those of the wheel that is there. Torch is installed without its requirements, into an environment
that serves nothing but its headers. Standard output is one JSON line: {"changed": bool, "wheel": "..."}.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import build_wheel

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/ipex"
INSTALL_TORCH = ROOT / "playbooks/roles/runtime/files/install_torch.py"
EXPECTED = frozenset(build_wheel.NATIVE_LIBRARIES | {"corebound/lib/torch_abi.json"})
HOW_TO_ALLOW = "ALLOW_CUDA_TORCH=1 (make) or ipex_allow_cuda_torch: true (inventory)"


def flavour_project(text: str, torch: str, requirements: list[str]) -> str:
    """Return the text of runtime/pyproject.toml with the flavour's version suffix and requirements.

    Raises: ValueError when the text has no version or no dependencies to replace.
    """
    series = ".".join(torch.split(".")[:2])
    names = [line for line in requirements if not line.startswith(("huggingface-hub", "tokenizers"))]
    listed = "".join(f'    "{line}",\n' for line in sorted([*names, f"torch=={series}.*"]))
    text, num_versions = re.subn(r'^(version = "[^"]+)"$', r'\1+ipex"', text, count=1, flags=re.MULTILINE)
    text, num_lists = re.subn(
        r"^dependencies = \[\n.*?^\]$", f"dependencies = [\n{listed}]", text, count=1, flags=re.MULTILINE | re.DOTALL
    )
    if (num_versions, num_lists) != (1, 1):
        raise ValueError("runtime/pyproject.toml: expected one `version =` and one list `dependencies =`")
    return text


def torch_to_build_with(version: str, *, allow_cuda: bool) -> Path:
    """Return the folder of torch's headers and libraries, after installing torch where it is missing."""
    venv = BUILD / "venv"
    python = venv / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    words = [version, "--no-deps", "--how-to-allow", HOW_TO_ALLOW, *(["--allow-cuda"] if allow_cuda else [])]
    done = subprocess.run([str(python), str(INSTALL_TORCH), *words], stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return next((venv / "lib").glob("python3.*/site-packages/torch"))


def flavour_sources(torch: str, requirements: list[str]) -> Path:
    """Return a copy of runtime/ with the flavour's metadata and without anything that was built."""
    source = BUILD / "source"
    if source.exists():
        shutil.rmtree(source)
    ignored = shutil.ignore_patterns("__pycache__")
    runtime = ROOT / "runtime"
    shutil.copytree(runtime / "csrc", source / "csrc", ignore=ignored)
    shutil.copytree(runtime / "corebound", source / "corebound", ignore=ignored)
    if (source / "corebound/lib").exists():
        shutil.rmtree(source / "corebound/lib")
    text = (runtime / "pyproject.toml").read_text(encoding="utf-8")
    (source / "pyproject.toml").write_text(flavour_project(text, torch, requirements), encoding="utf-8")
    return source


def build(dist: Path, project: dict[str, Any], *, allow_cuda: bool) -> bool:
    """Bring the wheel in `dist` and its records up to date and return whether it was built."""
    torch = project["tool"]["corebound-ipex"]["torch"]
    requirements = sorted(project["dependency-groups"]["ipex"])
    (dist / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    text = json.dumps([torch, requirements, build_wheel.fingerprint(ROOT / "runtime")])
    sources = hashlib.sha256(text.encode() + Path(__file__).read_bytes()).hexdigest()
    record = dist / "wheel.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if known.get("sources") == sources and (dist / known["wheel"]).is_file():
        print(f"wheel: {known['wheel']} is up to date", file=sys.stderr)
        return False
    torch_dir = torch_to_build_with(torch, allow_cuda=allow_cuda)
    print(f"wheel: compiling for torch {torch} (about a minute)", file=sys.stderr)
    for old in dist.glob("corebound-*.whl"):
        old.unlink()
    settings = ("cmake.define.COREBOUND_TORCH_ABI=classic", f"cmake.define.COREBOUND_TORCH_DIR={torch_dir}")
    wheel = build_wheel.build(flavour_sources(torch, requirements), dist, settings=settings, expected=EXPECTED)
    print(f"wheel: {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pins = {"pip": project["tool"]["corebound"]["pip"], "torch": torch}
    found = {"wheel": wheel.name, "sha256": sha256, "sources": sources, **pins}
    record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return True


def main() -> None:
    """Build what is missing, one process at a time, and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist/ipex", help="folder that gets the wheel")
    parser.add_argument("--allow-cuda", action="store_true", help="accept a CUDA build of torch to build against")
    options = parser.parse_args()
    options.dist.mkdir(parents=True, exist_ok=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    with (options.dist / ".lock").open("w", encoding="utf-8") as lock, (ROOT / "pyproject.toml").open("rb") as file:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_built = build(options.dist, tomllib.load(file), allow_cuda=options.allow_cuda)
        wheel = json.loads((options.dist / "wheel.json").read_text(encoding="utf-8"))["wheel"]
    print(json.dumps({"changed": is_built, "wheel": wheel}))


if __name__ == "__main__":
    main()
