"""The bundle probe of the host_checks role: every difference is named with what was expected and found."""

from __future__ import annotations

import pytest

from unit.tools.loading import load_script

probe = load_script("playbooks/roles/host_checks/files/bundle_probe.py")

WANTED = {"system": "Linux", "machine": "x86_64", "python": "3.11", "min_glibc": "2.34"}
FOUND = {"system": "Linux", "machine": "x86_64", "python": "3.11", "glibc": "2.36"}


def test_a_machine_like_that_of_the_bundle_passes() -> None:
    assert probe.check_bundle(WANTED, FOUND, has_venv=True)["status"] == "pass"


@pytest.mark.parametrize(
    ("key", "value", "detail"),
    [
        ("machine", "aarch64", "machine: expected x86_64, found aarch64"),
        ("python", "3.13", "python: expected 3.11, found 3.13"),
        ("glibc", "2.9", "glibc: expected 2.34 or newer, found 2.9"),
        ("glibc", "", "glibc: expected 2.34 or newer, found none"),
    ],
)
def test_a_difference_is_named(key: str, value: str, detail: str) -> None:
    line = probe.check_bundle(WANTED, {**FOUND, key: value}, has_venv=True)
    assert (line["status"], line["detail"]) == ("fail", detail)
    assert line["hint"]


def test_every_difference_is_named_at_once() -> None:
    line = probe.check_bundle(WANTED, {**FOUND, "machine": "aarch64", "python": "3.13"}, has_venv=False)
    assert [part.partition(":")[0] for part in line["detail"].split("; ")] == [
        "machine",
        "python",
        "Python's module venv",
    ]


def test_this_machine_tells_what_it_is() -> None:
    assert set(probe.this_platform()) == set(FOUND)
