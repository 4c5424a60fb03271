"""Container images on the nodes: there is no registry, so they are imported, each version once."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from k8s.build import pause_archive
from k8s.layout import PAUSE_IMAGE, ClusterError, Layout, Node
from k8s.layout import layout as default_layout
from k8s.machine import run
from k8s.node import control
from lab.layout import Layout as LabLayout
from lab.podman import Podman

IMPORT_TIMEOUT_S = 900.0


def mark(node: Node, name: str) -> Path:
    """Returns the file that says which version of an image the node has."""
    return node.images / f"imported-{re.sub(r'[^a-zA-Z0-9.-]', '-', name)}"


def has(node: Node, name: str, version: str) -> bool:
    """Returns whether the node has this version of an image."""
    path = mark(node, name)
    return path.exists() and path.read_text(encoding="utf-8") == version


def import_archive(node: Node, name: str, version: str, archive: Path) -> None:
    """Unpacks an image archive on a node."""
    control(node, "images", "import", archive, timeout_s=IMPORT_TIMEOUT_S)
    if name not in control(node, "images", "list", "--quiet").splitlines():
        raise ClusterError(f"{node.name}: {archive} was imported, but holds no image {name}")
    mark(node, name).write_text(version, encoding="utf-8")


def import_pause(node: Node) -> None:
    """Gives the node the image that every pod needs."""
    archive = pause_archive(node.layout)
    version = str(archive.stat().st_mtime_ns)
    if not has(node, PAUSE_IMAGE, version):
        import_archive(node, PAUSE_IMAGE, version, archive)


def podman_environment() -> dict[str, str]:
    """Returns the environment for podman: its usual store, with settings for this machine unless there are some."""
    if "CONTAINERS_CONF" in os.environ:
        return dict(os.environ)
    podman = Podman(LabLayout(default_layout().home / "podman"))
    podman.configure()
    return {**os.environ, "CONTAINERS_CONF": str(podman.layout.containers_conf)}


def import_image(layout: Layout, members: Sequence[Node], name: str) -> None:
    """Gives the nodes an image that podman has, where they lack this version of it."""
    environ = podman_environment()
    version = run("podman", "image", "inspect", "--format", "{{.Id}}", name, env=environ).stdout.strip()
    lacking = [node for node in members if not has(node, name, version)]
    if not lacking:
        return
    archive = layout.run / "image.tar"
    run(
        "podman",
        "save",
        "--format",
        "docker-archive",
        "--output",
        archive,
        name,
        env=environ,
        timeout_s=IMPORT_TIMEOUT_S,
    )
    for node in lacking:
        import_archive(node, name, version, archive)
        remove_others(node, name)
    archive.unlink()


def remove_others(node: Node, name: str) -> None:
    """Removes images of earlier versions and other names from a node: each takes gigabytes."""
    kept = {mark(node, PAUSE_IMAGE), mark(node, name)}
    for path in set(node.images.glob("imported-*")) - kept:
        path.unlink()
    rows = [line.split() for line in control(node, "images", "list").splitlines()[1:]]
    # An image has several names, kubelet's own sha256:... among them, and one digest.
    digests = {row[0]: row[2] for row in rows}
    wanted = {digests[PAUSE_IMAGE], digests[name]}
    unwanted = [found for found, digest in digests.items() if digest not in wanted]
    if unwanted:
        control(node, "images", "remove", "--sync", *unwanted, timeout_s=IMPORT_TIMEOUT_S)
