"""Makes an environment for each engine that `corebound bench peers` compares with, under a folder of the cache.

Started by `make bench-peers`. Each engine's packages are pinned in corebound/engine/bench/peers/requirements; torch
comes first, as the CPU build or not at all, so that no requirement can pull in the other one. A second run finds its
stamp and changes nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from setup_venv import ROLE_FILES, ROOT, pins, run, run_quietly, say

REQUIREMENTS = ROOT / "runtime/corebound/engine/bench/peers/requirements"
DEFAULT_FOLDER = Path.home() / ".cache/corebound/peers"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What an environment needs beside its requirements."""

    with_torch: bool = True
    # Builds of these for CUDA come with some requirements and break torch's CPU build; nothing here uses them.
    without: tuple[str, ...] = ()
    build_variables: dict[str, str] = field(default_factory=dict)


CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
PEERS = {
    "ctranslate2": Peer(),
    "deepspeed": Peer(build_variables={"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}),
    # g++ 12 drops stores to the tile configuration that its AMX intrinsic reads (GCC bug 114098), and the program dies.
    "llama_cpp": Peer(
        with_torch=False,
        build_variables={
            "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'",
        },
    ),
    "openvino": Peer(without=CUDA_COMPANIONS),
    "transformers_tp": Peer(),
    "vllm": Peer(without=CUDA_COMPANIONS),
}


def fingerprint(name: str) -> str:
    """Return a hash over everything that decides what the environment of a peer holds."""
    digest = hashlib.sha256(f"{name} {PEERS[name]} {pins()} {sys.version}".encode())
    digest.update((REQUIREMENTS / f"{name}.txt").read_bytes())
    return digest.hexdigest()


def prepare(name: str, folder: Path) -> None:
    """Bring the environment of a peer up to date, unless its stamp says that it is."""
    venv, peer = folder / name, PEERS[name]
    stamp, python = venv / ".setup", venv / "bin/python"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint(name):
        say(f"{name}: ready")
        return
    started = time.monotonic()
    say(f"{name}: {venv}")
    if not python.exists():
        run(sys.executable, "-m", "venv", venv)
    versions = pins()
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, f"pip=={versions['pip']}")
    constraint = venv / "constraint.txt"
    constraint.write_text(f"torch=={versions['torch']}\n", encoding="utf-8")
    if peer.with_torch:
        run_quietly(python, ROLE_FILES / "install_torch.py", versions["torch"])
    wanted: list[str | Path] = ["--requirement", REQUIREMENTS / f"{name}.txt", "--constraint", constraint]
    refuse_cuda(python, name, wanted)
    # What pip built before with other variables is not what is wanted now.
    fresh = ["--no-cache-dir", "--force-reinstall"] if peer.build_variables else []
    run(*pip, *fresh, *wanted, **peer.build_variables)
    if peer.without:
        run(python, "-m", "pip", "--disable-pip-version-check", "uninstall", "--quiet", "--yes", *peer.without)
    stamp.write_text(fingerprint(name), encoding="utf-8")
    say(f"{name}: ready in {time.monotonic() - started:.0f} s")


def refuse_cuda(python: Path, name: str, wanted: list[str | Path]) -> None:
    """End with a clear message when the requirements of a peer would bring packages of CUDA, or another torch."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--quiet", "--report", "-"]
    done = subprocess.run(
        [str(word) for word in (*command, *wanted)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **PEERS[name].build_variables},
    )
    if done.returncode != 0:
        sys.exit(f"error: {name}: pip cannot resolve its requirements:\n{done.stderr}")
    unwanted = unwanted_packages(done.stdout)
    if unwanted:
        sys.exit(
            f"error: {name}: its requirements would install {', '.join(unwanted)}, several gigabytes for GPUs\n\n"
            "hint: point pip at torch's CPU wheels: see `make setup`"
        )


def unwanted_packages(report: str) -> list[str]:
    """Return the packages in a report of pip that belong to CUDA, torch itself included."""
    import json

    names = [item["metadata"]["name"].lower() for item in json.loads(report)["install"]]
    return sorted(name for name in names if name == "torch" or name.startswith(("nvidia-", "cuda-")))


def main() -> None:
    """Make the environments that are asked for; one process at a time makes the same one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peers", nargs="*", choices=[*PEERS, []], help="all of them when none is named")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.peers or PEERS:
        with (options.folder / f".{name}.lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            prepare(name, options.folder)


if __name__ == "__main__":
    main()
