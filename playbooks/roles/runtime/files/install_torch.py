"""Installs the CPU build of torch into the environment that runs this script, and never a CUDA build unasked.

Asks pip what it would install, reads the answer, and only then installs. Needs nothing but Python and pip, so that
`make setup` runs it on this machine and the runtime role on every node. Standard output is one JSON line:
{"changed": bool, "version": "..."}, the version with its local part. `--resolve-only` stops before installing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

CUDA_REQUIREMENT = re.compile(r"^(nvidia[-_]|cuda[-_]|triton\b)", re.IGNORECASE)
EXIT_REFUSED = 2
HOW_TO_ALLOW = "ALLOW_CUDA_TORCH=1 (make) or runtime_allow_cuda_torch: true (inventory)"


def cuda_evidence(metadata: dict[str, Any]) -> list[str]:
    """Return what marks a resolved torch as a CUDA build: its local version or its requirements; empty for CPU."""
    local = str(metadata["version"]).partition("+")[2]
    if local == "cpu":
        return []
    evidence = [f"version {metadata['version']}"] if local else []
    return evidence + [name for name in metadata.get("requires_dist") or [] if CUDA_REQUIREMENT.match(name)]


def refusal(
    metadata: dict[str, Any], url: str, num_bytes: int | None, evidence: list[str], how_to_allow: str = HOW_TO_ALLOW
) -> str:
    """Return the message that names the CUDA build's size and how to get the CPU build in its place."""
    wheel = Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name
    size = f"{num_bytes / 1e6:.0f} MB" if num_bytes else "about 500 MB or more"
    names = ", ".join(re.split(r"[\s<>=!\[;]", item)[0] for item in evidence)
    return (
        f"error: pip would install a CUDA build of torch {metadata['version']}: {wheel} is a download of {size},\n"
        f"and it pulls in several gigabytes more ({names}). Corebound runs on CPUs and uses none of it.\n"
        "\n"
        "hint: point pip at CPU wheels and run this again:\n"
        "        pip config set global.extra-index-url URL     an index of torch's CPU wheels\n"
        "        pip config set global.find-links FOLDER       a folder that holds a torch wheel ending in +cpu\n"
        f"      or accept the CUDA build with {how_to_allow}"
    )


def installed_version() -> str | None:
    """Return the version of torch in this environment, local part included; None when there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def resolve(version: str) -> tuple[dict[str, Any], str]:
    """Return metadata and address of the torch that pip would install; only metadata is downloaded from an index."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    done = subprocess.run([*command, "--report", "-", f"torch=={version}"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        sys.exit(f"error: pip found no torch {version} for Python {sys.version.split()[0]}; its own words are above")
    item = json.loads(done.stdout)["install"][0]
    return item["metadata"], item["download_info"]["url"]


def download_bytes(url: str) -> int | None:
    """Return the size of the file behind `url`, None when it cannot be told."""
    parts = urllib.parse.urlparse(url)
    if parts.scheme == "file":
        return Path(urllib.parse.unquote(parts.path)).stat().st_size
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the address comes from pip's own resolution
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
            return int(answer.headers.get("Content-Length") or 0) or None
    except (urllib.error.URLError, TimeoutError, ValueError):
        return None


def main() -> int:
    """Install torch when it is missing or another version, and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="version of torch without its local part, such as 2.13.0")
    parser.add_argument("--allow-cuda", action="store_true", help="accept a CUDA build")
    parser.add_argument("--resolve-only", action="store_true", help="say what would be installed, and install nothing")
    parser.add_argument("--how-to-allow", default=HOW_TO_ALLOW, help="what a refusal says about accepting it")
    parser.add_argument("--no-deps", action="store_true", help="torch alone: enough to build against, not to import")
    options = parser.parse_args()

    present = None if options.resolve_only else installed_version()
    if present is not None and present.partition("+")[0] == options.version:
        print(json.dumps({"changed": False, "version": present}))
        return 0
    metadata, url = resolve(options.version)
    evidence = cuda_evidence(metadata)
    num_bytes = download_bytes(url)
    if evidence and not options.allow_cuda:
        print(refusal(metadata, url, num_bytes, evidence, options.how_to_allow), file=sys.stderr)
        return EXIT_REFUSED
    if options.resolve_only:
        print(json.dumps({"changed": False, "version": metadata["version"]}))
        return 0
    kind = "CUDA" if evidence else "CPU"
    size = f", {num_bytes / 1e6:.0f} MB" if num_bytes else ""
    print(f"installing torch {metadata['version']} ({kind} build{size})", file=sys.stderr)
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    alone = ["--no-deps"] if options.no_deps else []
    command = [sys.executable, "-m", "pip", "install", *quiet, *alone, f"torch=={metadata['version']}"]
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if code == 0:
        print(json.dumps({"changed": True, "version": metadata["version"]}))
    return code


if __name__ == "__main__":
    sys.exit(main())
