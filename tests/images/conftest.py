"""The images, built once for all tests that look into or run them."""

from __future__ import annotations

import pytest

from images.support import Images, build, own_podman
from lab import machine


@pytest.fixture(scope="session")
def images() -> Images:
    """Returns the images of this checkout, built when a layer is another than last time."""
    reason = machine.why_not()
    if reason:
        pytest.skip(reason)
    machine.install_packages()
    return build(own_podman())
