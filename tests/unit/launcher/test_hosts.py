from __future__ import annotations

import socket
from pathlib import Path

import pytest

from corebound.launcher import hosts
from corebound.launcher.hosts import is_this_machine, topology_reader


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, ...]]:
    """The arguments of each reading of a topology; what is read is a new object each time."""
    calls: list[tuple[Path, ...]] = []

    def read_topology(*args: Path) -> object:
        calls.append(args)
        return object()

    monkeypatch.setattr(hosts, "read_topology", read_topology)
    return calls


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", socket.gethostname()])
def test_this_machine_is_known_by_its_names(name: str) -> None:
    assert is_this_machine(name)
    assert not is_this_machine(f"not-{name}")


def test_this_machine_is_read_once_and_others_never(read: list[tuple[Path, ...]]) -> None:
    topology_of = topology_reader()
    assert topology_of("elsewhere") is None and read == []
    first = topology_of("localhost")
    assert first is not None and topology_of("127.0.0.1") is first
    assert read == [()]


def test_with_a_tree_every_host_looks_like_it(read: list[tuple[Path, ...]], tmp_path: Path) -> None:
    topology_of = topology_reader(tmp_path)
    assert topology_of("elsewhere") is topology_of("localhost") is not None
    assert read == [(tmp_path,)]
