"""Where ranks write the words by which they find each other."""

from __future__ import annotations

from typing import Any

import pytest
from torch.distributed import HashStore

from corebound.comm import rendezvous
from corebound.config.env import RankEnvironment

PLACE = RankEnvironment(
    rank=0, local_rank=0, world_size=2, local_size=2, master_addr="localhost", master_port=1, job_id="j"
)


class RollCallReachedError(Exception):
    """Ends a join where the ranks would begin to talk."""


@pytest.fixture
def prefix(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns whether rank 0 listens itself, and under which of some names a join writes."""

    def joined(*names: str) -> tuple[bool, list[str]]:
        store, listening = HashStore(), []

        def open_store(place: RankEnvironment, timeout_s: float, *, listens: bool) -> HashStore:
            listening.append(listens)
            return store

        def roll_call(prefixed: Any, *ignored: Any) -> None:
            prefixed.set("word", "x")
            raise RollCallReachedError

        monkeypatch.setattr(rendezvous, "_open_store", open_store)
        monkeypatch.setattr(rendezvous, "_roll_call", roll_call)
        with pytest.raises(RollCallReachedError):
            rendezvous.join(PLACE, 1.0)
        return listening[0], [name for name in names if store.check([f"{name}/word"])]

    return joined


def test_rank_0_holds_the_store_of_a_launch_of_ours(prefix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert prefix("corebound") == (True, ["corebound"])


def test_ranks_that_torchrun_starts_anew_do_not_read_what_the_first_ones_wrote(
    prefix: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's store outlives its ranks, and a stale verdict says that everybody is there."""
    names = [f"corebound/{attempt}.{join}" for attempt in (0, 1) for join in (0, 1)]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    found = []
    for attempt in ("0", "1"):
        # Each attempt is a new process, which counts its joins from 0.
        monkeypatch.setattr(rendezvous, "_joins", iter(range(9)))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        found += [prefix(*names), prefix(*names)]
    assert found == [(False, [name]) for name in names]
