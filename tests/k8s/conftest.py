"""The cluster for tests: put up once for all of them, with the image of this checkout, and taken down after them.

A cluster that `make k8s-up` put up is used and left. COREBOUND_K8S_IMAGE names an image that podman has, to be tested
in place of building this checkout's.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.support import BUILD_TIMEOUT_S
from k8s import cluster, machine
from k8s.access import Access
from k8s.images import podman_environment
from k8s.jobs import Manifest, Run
from k8s.layout import ROOT, layout
from k8s.processes import wait_until

IMAGE = "COREBOUND_K8S_IMAGE"


@pytest.fixture(scope="session")
def image() -> str:
    """Returns the name of the image to test, which podman has."""
    reason = machine.why_not()
    if reason:
        pytest.skip(reason)
    if os.environ.get(IMAGE):
        return os.environ[IMAGE]
    command = [sys.executable, str(ROOT / "images/build.py"), "--engine", "podman"]
    environ = {**podman_environment(), "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[1].split()[0]


@pytest.fixture(scope="session")
def access(image: str) -> Iterator[Access]:
    """Returns the access to a cluster whose nodes have the image."""
    place = layout()
    place.home.mkdir(parents=True, exist_ok=True)
    with place.in_use.open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.fail(f"tests of another checkout use the cluster ({place.in_use})")
        was_up = cluster.is_up(place)
        try:
            cluster.up(place, image)
            yield Access(place)
        finally:
            if not was_up:
                cluster.down(place)


@pytest.fixture
def run(access: Access, tmp_path: Path) -> Iterator[Run]:
    """Returns a place for one job, a namespace of its own that goes with the test."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    access.kubectl("create", "namespace", namespace)
    wait_until(lambda: access.has_service_account(namespace), f"namespace {namespace} is ready", 60)
    yield Run(access, namespace, tmp_path)
    access.kubectl("delete", "namespace", namespace, "--timeout=240s", timeout_s=270)


@pytest.fixture
def manifest(image: str) -> Manifest:
    """Returns k8s/mpijob-bloom.yaml for the image under test."""
    return Manifest.read(image)
