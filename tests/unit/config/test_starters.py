"""Ranks that other programs start know their place by what those programs say."""

from __future__ import annotations

import os

import pytest

from corebound.config import env
from corebound.errors import ConfigError

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
TORCHRUN = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "4242",
}  # fmt: skip


def test_a_rank_of_open_mpi_is_not_taken_for_a_process_on_its_own() -> None:
    place = env.rank_environment({**OPEN_MPI, "MASTER_ADDR": "head"})
    assert place is not None
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (3, 4, 1, 2)
    assert (place.master_addr, place.master_port, place.job_id) == ("head", 29500, "port29500")


def test_open_mpi_on_several_hosts_is_told_how_to_name_the_master() -> None:
    with pytest.raises(ConfigError, match="mpirun of Open MPI started on several hosts: MASTER_ADDR") as caught:
        env.rank_environment(OPEN_MPI)
    assert "-x MASTER_ADDR=HOST" in str(caught.value.hint)
    place = env.rank_environment({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"})
    assert place is not None and place.master_addr == "127.0.0.1"


def test_a_rank_of_torchrun_knows_its_place_and_that_torchrun_holds_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    place = env.rank_environment(TORCHRUN)
    assert place is not None
    assert (place.rank, place.local_rank, place.local_size, place.master_port) == (1, 1, 2, 4242)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert env.torch_store_attempt() is None
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert env.torch_store_attempt() == "2"


def test_the_launchers_own_words_count_before_those_of_mpi() -> None:
    place = env.rank_environment({**OPEN_MPI, **TORCHRUN})
    assert place is not None and (place.rank, place.world_size) == (1, 2)


def test_scripts_that_look_for_local_rank_find_it_under_mpi_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**OPEN_MPI, "MASTER_ADDR": "head"})
    env.publish_place()
    expected = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert os.environ.items() >= {**expected, "MASTER_ADDR": "head", "MASTER_PORT": "29500"}.items()
    monkeypatch.setattr(os, "environ", {"HOME": "/root"})
    env.publish_place()
    assert os.environ == {"HOME": "/root"}
