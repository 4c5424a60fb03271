"""The image of a node: from an image that a registry serves, or from the packages that this machine installs from."""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab.layout import ROOT, LabError
from lab.machine import run
from lab.podman import Podman

CONTEXT = ROOT / "images/lab-node"
IMAGE = "localhost/corebound-lab-node"
BUILD_TIMEOUT_S = 900


def sources_lines(text: str) -> Iterator[str]:
    """Yields the one-line form of every binary source in the text of a sources.list or a .sources file."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in (line for line in block.splitlines() if not line.startswith("#")):
            if line.startswith("deb "):
                yield line
            elif ":" in line and not line.startswith((" ", "\t")):
                name, _, value = line.partition(":")
                fields[name.lower()] = value.strip()
        if fields.get("enabled", "yes") == "no" or "deb" not in fields.get("types", "").split():
            continue
        for uri in fields["uris"].split():
            for suite in fields["suites"].split():
                yield f"deb {uri} {suite} {fields.get('components', '')}".rstrip()


def own_sources(folder: Path, codename: str) -> list[str]:
    """Returns the sources of this machine's own distribution, as `deb URI SUITE COMPONENTS`, without options."""
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    found: list[str] = []
    for path in files:
        if path.suffix in {".list", ".sources"} and path.is_file():
            for line in sources_lines(path.read_text(encoding="utf-8")):
                words = [word for word in line.partition("#")[0].split() if not word.startswith(("[", "signed-by="))]
                if len(words) > 3 and (words[2] == codename or words[2].startswith(f"{codename}-")):
                    found.append(" ".join(word for word in words if not word.endswith("]")))
    # The release itself comes before its updates.
    return sorted(dict.fromkeys(found), key=lambda line: line.split()[2])


def bootstrap(podman: Podman) -> str:
    """Returns the name of an image of this machine's own distribution, made from its package sources when missing."""
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    sources = own_sources(Path("/etc/apt"), codename) if codename else []
    if not sources:
        raise LabError(
            f"no package source of {release.get('PRETTY_NAME', 'this system')} in /etc/apt to make a node from",
            hint="name an image that can be pulled: make lab-up BASE_IMAGE=debian:bookworm-slim",
        )
    digest = hashlib.sha256("\n".join(sources).encode()).hexdigest()[:12]
    name = f"localhost/corebound-lab-base:{codename}-{digest}"
    if podman("image", "exists", name, check=False).returncode != 0:
        with tempfile.TemporaryDirectory(dir=podman.layout.home) as folder:
            tar = Path(folder) / "base.tar"
            run("mmdebstrap", "--quiet", "--variant=minbase", codename, tar, *sources, timeout_s=BUILD_TIMEOUT_S)
            podman("import", "--quiet", str(tar), name, timeout_s=120)
    return name


def node_image(podman: Podman, base_image: str) -> str:
    """Returns the name of the node image, built when it or the image below it is another than last time."""
    base = base_image or bootstrap(podman)
    digest = hashlib.sha256(base.encode())
    for path in sorted(CONTEXT.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    name = f"{IMAGE}:{digest.hexdigest()[:12]}"
    if podman("image", "exists", name, check=False).returncode != 0:
        # The build needs the package sources only, and with the machine's own network it leaves no bridge behind.
        words = ["build", "--quiet", "--network", "host", "--build-arg", f"BASE_IMAGE={base}", "--tag", name]
        podman(*words, str(CONTEXT), timeout_s=BUILD_TIMEOUT_S)
    return name
