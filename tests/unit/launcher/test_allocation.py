from __future__ import annotations

import socket
from pathlib import Path

import pytest

from corebound.errors import ConfigError, HostError
from corebound.launcher.allocation import allocated_hosts, node_names, tasks_per_node
from corebound.launcher.hostfile import Host


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Returns an environment inside an allocation of two nodes, with a scontrol that knows how it is written."""
    tool = tmp_path / "scontrol"
    tool.write_text(
        """#!/bin/sh
[ "$*" = "show hostnames n[1-2]" ] || { echo what? >&2; exit 1; }
echo n1
echo n2
"""
    )
    tool.chmod(0o755)
    return {"PATH": f"{tmp_path}:/bin:/usr/bin", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "2,1"}


def addresses(monkeypatch: pytest.MonkeyPatch, known: dict[str, str]) -> None:
    def look_up(name: str, port: None) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        if name not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, 0, 0, "", (known[name], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_an_allocation_gives_a_slot_for_each_task(environ: dict[str, str]) -> None:
    assert allocated_hosts(environ) == (Host("n1", 2), Host("n2", 1))


@pytest.mark.parametrize(
    ("text", "counts"),
    [("2", [2]), ("2(x3),1", [2, 2, 2, 1]), ("1,4(x2)", [1, 4, 4]), ("", []), ("2(x),1", []), ("two", [])],
)
def test_counts_of_tasks_are_written_short(text: str, counts: list[int]) -> None:
    assert tasks_per_node(text) == counts


def test_outside_of_an_allocation_hosts_must_be_named() -> None:
    with pytest.raises(ConfigError, match="SLURM_JOB_NODELIST is not set"):
        allocated_hosts({"PATH": ""})


def test_counts_that_do_not_match_the_nodes_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"expected counts for 2 nodes \(n\[1-2\]\), found '2'"):
        allocated_hosts({**environ, "SLURM_TASKS_PER_NODE": "2"})


def test_a_list_that_scontrol_refuses_is_an_error_with_its_words(environ: dict[str, str]) -> None:
    with pytest.raises(HostError, match=r"scontrol show hostnames n\[: exit code 1: what\?"):
        allocated_hosts({**environ, "SLURM_JOB_NODELIST": "n["})


def test_a_machine_without_scontrol_is_an_error_that_says_what_to_install(environ: dict[str, str]) -> None:
    with pytest.raises(HostError) as caught:
        allocated_hosts({**environ, "PATH": "/no/such/folder"})
    assert caught.value.hint is not None and "Slurm's client programs" in caught.value.hint


def test_a_host_of_the_hostfile_is_found_by_its_address(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses(monkeypatch, {"n1": "192.0.2.1", "n2": "192.0.2.2", "192.0.2.2": "192.0.2.2", "n1.example": "192.0.2.1"})
    assert node_names(["192.0.2.2", "n1"], environ) == ["n2", "n1"]
    assert node_names(["n1.example"], environ) == ["n1"]
    assert node_names(["n2", "n1"], environ) == ["n2", "n1"]
    with pytest.raises(ConfigError, match="host n9 is not a node of the Slurm allocation, which has n1, n2"):
        node_names(["n1", "n9"], environ)


def test_outside_of_an_allocation_names_stay_as_they_are() -> None:
    assert node_names(["192.0.2.2", "n1"], {}) == ["192.0.2.2", "n1"]
