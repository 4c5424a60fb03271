"""Building the images in a podman store of its own, running them as a restricted pod does, and reading their layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.layout import ROOT, Layout
from lab.podman import Podman

BUILD_TIMEOUT_S = 3600
# What a pod that meets Pod Security `restricted`, with a read-only root, may do.
HARDENED = ("--read-only", "--tmpfs=/tmp", "--shm-size=256m", "--cap-drop=ALL", "--security-opt=no-new-privileges")


@dataclass(frozen=True)
class Images:
    """The built images, by tag, and the podman that has them."""

    podman: Podman
    base: str
    runtime: str

    def run(self, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Returns what a command in the runtime image came to, as a restricted pod runs it."""
        words = ["run", "--rm", "--network=none", *HARDENED, *options, self.runtime, *command]
        return self.podman(*words, timeout_s=300, check=False)

    def inspect(self, tag: str) -> dict[str, Any]:
        """Returns what podman knows of an image."""
        found: dict[str, Any] = json.loads(self.podman("image", "inspect", tag).stdout)[0]
        return found


def build(podman: Podman, *options: str) -> Images:
    """Builds base and runtime in podman's store."""
    command = [sys.executable, str(ROOT / "images/build.py"), "--engine", " ".join(podman.words), *options]
    environ = {**os.environ, "CONTAINERS_CONF": str(podman.layout.containers_conf), "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    base, runtime = (line.split()[0] for line in done.stdout.splitlines()[:2])
    return Images(podman, base, runtime)


def own_podman() -> Podman:
    """Returns podman with a store of its own, outside the repository, configured for this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    podman = Podman(Layout(cache / "corebound-images"))
    podman.configure()
    return podman


def members(podman: Podman, tag: str, folder: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yields every file of every layer of an image, with its content."""
    archive = folder / "image.tar"
    podman("save", "--format", "docker-archive", "--output", str(archive), tag, timeout_s=600)
    with tarfile.open(archive) as outer:
        for layer in (member for member in outer if member.name.endswith(".tar") and member.isfile()):
            with tarfile.open(fileobj=outer.extractfile(layer)) as inner:
                for member in inner:
                    content = inner.extractfile(member) if member.isfile() else None
                    yield member, content.read() if content else b""
    archive.unlink()
