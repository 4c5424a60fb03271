"""What oneCCL needs, and what is said where it is missing."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from corebound import native, native_ccl
from corebound.config import env
from corebound.errors import ConfigError
from corebound.launcher import agent
from corebound.native_ccl import CclUnavailableError

ROOT = Path(__file__).parents[2]
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def test_the_hints_name_the_versions_that_are_pinned() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert list(native_ccl.RUN_TIME_PINS) == groups["intel_mpi"]
    assert [{"include-group": "intel_mpi"}, *native_ccl.BUILD_PINS] == groups["oneccl"]


def test_a_binding_that_was_not_built_is_an_error_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "LIBRARY_DIR", tmp_path)
    with pytest.raises(CclUnavailableError, match=r"libcorebound_ccl\.so was not built") as caught:
        native_ccl.require()
    assert "pip install --no-deps oneccl-devel==" in str(caught.value.hint)


def test_libraries_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libcorebound_ccl.so").touch()
    monkeypatch.setattr(native, "LIBRARY_DIR", tmp_path)
    monkeypatch.setattr(native_ccl, "_find", lambda name: name if name == "libhwloc.so.15" else None)
    with pytest.raises(CclUnavailableError, match=r"oneCCL: libfabric.so.1 not found") as caught:
        native_ccl.require()
    assert "impi-rt==" in str(caught.value.hint)


@pytest.mark.parametrize("variable", ["COREBOUND_COMM", "COREBOUND_HOST_LINK"])
def test_the_agent_refuses_ccl_before_ranks_start_where_it_is_missing(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "LIBRARY_DIR", tmp_path)
    agent._require_ccl({variable: "gloo"})
    with pytest.raises(CclUnavailableError, match="was not built"):
        agent._require_ccl({variable: "ccl"})


def test_a_rank_that_hydra_started_knows_its_place() -> None:
    place = env.rank_environment(HYDRA)
    assert place is not None
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (1, 2, 1, 2)
    assert (place.master_addr, place.master_port) == ("127.0.0.1", 29500)


def test_on_several_hosts_hydra_has_to_be_told_where_ranks_meet() -> None:
    spread = {**HYDRA, "PMI_SIZE": "4"}
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set"):
        env.rank_environment(spread)
    place = env.rank_environment({**spread, "MASTER_ADDR": "node1", "MASTER_PORT": "1234"})
    assert place is not None
    assert (place.master_addr, place.master_port, place.world_size) == ("node1", 1234, 4)
