from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from corebound.launcher import remote
from corebound.launcher.plan import LaunchPlan
from corebound.launcher.signals import SignalPipe
from corebound.launcher.spec import LaunchSpec

SECRETS = {"HF_TOKEN": "of a file"}
PLACE = "docs/launching.md states this: change both"


def environments(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> dict[str, Mapping[str, str]]:
    """Return the environment in which each agent, or the starter of all, is started."""
    found: dict[str, Mapping[str, str]] = {}

    def by_ssh(host: str, command: Sequence[str], environ: Mapping[str, str]) -> SimpleNamespace:
        found[host] = environ
        return SimpleNamespace(ended=True)

    @contextmanager
    def by_starter(
        starter: object, spec: object, hosts: object, environ: Mapping[str, str], signals: object
    ) -> Iterator[list[object]]:
        found["starter"] = environ
        yield []

    monkeypatch.setattr(remote.ssh, "start", by_ssh)
    monkeypatch.setattr(remote.mpi, "started", by_starter)
    monkeypatch.setattr(remote, "is_this_machine", lambda host: host == "here")
    spec = LaunchSpec(command=(sys.executable, "s.py"), hostfile=Path("hosts"), file_environ=SECRETS, **fields)
    draft = cast(LaunchPlan, SimpleNamespace(nodes=[SimpleNamespace(host="here"), SimpleNamespace(host="there")]))
    with remote._agents(spec, draft, {"A": "1"}, cast(SignalPipe, None)):
        return found


def test_secrets_of_a_file_reach_the_ranks_of_this_machine_where_no_ssh_starts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = environments(monkeypatch, launcher="ssh")
    assert found == {"here": {"A": "1", **SECRETS}, "there": {"A": "1"}}
    assert "without `--force_multi`" in _guide(), PLACE


@pytest.mark.parametrize("launcher", ["impi", "openmpi", "mpich", "slurm"])
def test_no_other_starter_is_given_the_secrets_of_a_file(monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    assert environments(monkeypatch, launcher=launcher) == {"starter": {"A": "1"}}
    assert "by MPI or Slurm none of the file's secrets arrive" in _guide(), PLACE


def test_this_machine_by_ssh_is_given_no_more_than_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = environments(monkeypatch, launcher="ssh", force_multi=True)
    assert found == {"here": {"A": "1"}, "there": {"A": "1"}}


def _guide() -> str:
    text = (Path(__file__).parents[3] / "docs/launching.md").read_text(encoding="utf-8")
    return " ".join(text.split())
