"""The wheels that an image is made of: what each flavour wants, downloaded once by pip of this checkout."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import run, say

ROOT = Path(__file__).resolve().parents[1]
INSTALL_TORCH = ROOT / "playbooks/roles/runtime/files/install_torch.py"
HOW_TO_ALLOW = "ALLOW_CUDA_TORCH=1 make images"
Lists = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Flavour:
    """One runtime image, from one Containerfile: its torch, its packages, and how our operators reach torch."""

    image: str
    table: str
    group: str
    torch_abi: str


FLAVOURS = {
    "native": Flavour("runtime", table="corebound", group="runtime", torch_abi="stable"),
    "ipex": Flavour("runtime-ipex", table="corebound-ipex", group="ipex", torch_abi="classic"),
}


def project() -> dict[str, Any]:
    """Return pyproject.toml of the repository."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def lists(pins: Mapping[str, Any], flavour: Flavour) -> Lists:
    """Return file of requirements -> its lines: to build with, to run with, and of oneCCL what only a build needs."""
    groups = {
        name: [line for line in lines if isinstance(line, str)] for name, lines in pins["dependency-groups"].items()
    }
    return {
        "build.txt": [f"pip=={pins['tool']['corebound']['pip']}", *groups["build"]],
        "runtime.txt": [f"torch=={pins['tool'][flavour.table]['torch']}", *groups[flavour.group], *groups["intel_mpi"]],
        "oneccl.txt": groups["oneccl"],
    }


def digest(wanted: Lists, python: str, *, allow_cuda: bool) -> str:
    """Return what tells one set of requirements for one Python from another.

    A set that may hold a CUDA build is never taken by a build that refuses one.
    """
    return hashlib.sha256(json.dumps([python, allow_cuda, wanted], sort_keys=True).encode()).hexdigest()[:12]


def exact_torch(version: str, *, allow_cuda: bool) -> str:
    """Return the torch that pip finds, with its local version; ends with pip's refusal where that is a CUDA build."""
    words = ["--resolve-only", "--how-to-allow", HOW_TO_ALLOW, *(["--allow-cuda"] if allow_cuda else [])]
    done = subprocess.run(
        [sys.executable, str(INSTALL_TORCH), *words, version], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(done.returncode)
    return str(json.loads(done.stdout)["version"])


def wheelhouse(cache: Path, name: str, *, allow_cuda: bool) -> Path:
    """Return the folder with every wheel of a flavour, downloaded when the pins are others than last time."""
    wanted = {file: list(lines) for file, lines in lists(project(), FLAVOURS[name]).items()}
    folder = cache / f"wheelhouse-{name}-{digest(wanted, sys.version, allow_cuda=allow_cuda)}"
    if folder.is_dir():
        return folder
    torch = wanted["runtime.txt"][0].partition("==")[2]
    wanted["runtime.txt"][0] = f"torch=={exact_torch(torch, allow_cuda=allow_cuda)}"
    part = folder.with_name(f"{folder.name}.part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    say(f"downloading the wheels of {name} (about {600 if name == 'native' else 900} MB with torch's CPU build)")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--only-binary=:all:"]
    run([*pip, "--dest", part, *wanted["build.txt"], *wanted["runtime.txt"]], capture_output=True)
    # Everything else that it names is for GPUs.
    run([*pip, "--no-deps", "--dest", part, *wanted["oneccl.txt"]], capture_output=True)
    for file, lines in wanted.items():
        (part / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for old in cache.glob(f"wheelhouse-{name}-*"):
        if old != part:
            shutil.rmtree(old)
    part.rename(folder)
    return folder
