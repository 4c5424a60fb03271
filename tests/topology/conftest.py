"""The machines for tests: each is booted once in a test run, when the first test asks for it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import pytest

from topology.boot import Report, run_machine
from topology.cases import MACHINES, cases_of
from topology.image import Image, UnavailableError, image, install_programs

ReportOf = Callable[[str], Report]


@pytest.fixture(scope="session")
def built_image() -> Image:
    """Returns kernel and root; skips where they or QEMU cannot be had."""
    try:
        install_programs()
        return image()
    except UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def report_of(built_image: Image) -> ReportOf:
    """Returns the function that gives the report of the machine with a name."""

    @functools.cache
    def report(name: str) -> Report:
        machine = MACHINES[name]
        found = run_machine(machine, cases_of(machine), built_image)
        print(f"machine {name}: {len(found.cases)} launches in {found.seconds:.0f} s", file=sys.stderr)
        return found

    return report
