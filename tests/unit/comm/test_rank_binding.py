"""Which cores a rank takes that another program has started: judged with the cards of all ranks of its host."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from corebound import comm
from corebound.comm import rank_binding
from corebound.config.env import RankEnvironment
from corebound.errors import CommError, ConfigError
from corebound.launcher.binding import Binding
from corebound.topology import read_topology
from fixtures.topology_trees import write_machine

Bind = Callable[..., Binding | None]
PARENT = 4242


@pytest.fixture
def bind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bind:
    """Returns what a rank binds to on a machine of 2 x 8 cores with even CPUs on one socket, odd ones on the other.

    `masks` are the CPUs that each rank of the host may use, `starter` those of the program that started them.
    """
    machine = read_topology(write_machine("interleaved", tmp_path))
    found: list[Binding] = []
    monkeypatch.setattr(rank_binding, "_apply", lambda binding, *, speaks, warnings: found.append(binding))
    monkeypatch.setattr(os, "getppid", lambda: PARENT)

    def bound(rank: int, masks: list[list[int]], starter: list[int], **cards: Any) -> Binding | None:
        found.clear()
        own = masks[rank]
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(starter if pid == PARENT else own))
        monkeypatch.setattr(rank_binding, "read_topology", lambda: replace(machine, allowed_cpus=tuple(own)))
        locals_of = cards.get("local_ranks", range(len(masks)))

        def exchange(group: Any, card: dict[str, Any]) -> list[dict[str, Any]]:
            others = [
                {**card, "cpus": sorted({*mask, *starter}), "local_rank": local}
                for mask, local in zip(masks, locals_of, strict=True)
            ]
            elsewhere = {**card, "node": ["another"], "local_rank": 0}
            return [*others, elsewhere] if cards.get("two_hosts") else others

        monkeypatch.setattr(rank_binding.shm_handshake, "exchange", exchange)
        place = RankEnvironment(
            rank=rank, local_rank=list(locals_of)[rank], world_size=len(masks), local_size=len(masks),
            master_addr="m", master_port=1, job_id="j",
        )  # fmt: skip
        group: Any = SimpleNamespace(rank=rank)
        rank_binding.bind_this_rank(group, place)
        return found[0] if found else None

    return bound


ALL = list(range(16))


@pytest.mark.parametrize("two_hosts", [False, True])
def test_ranks_that_nobody_bound_share_the_host_by_the_launchers_rules(bind: Bind, two_hosts: bool) -> None:
    """numbering even/odd: DeepSpeed gave "both ranks 4 contiguous ids -> each straddles both sockets"."""
    assert [bind(rank, [ALL, ALL], ALL, two_hosts=two_hosts) for rank in (0, 1)] == [
        Binding((0, 2, 4, 6, 8, 10, 12, 14), (0,), "bind", 8),
        Binding((1, 3, 5, 7, 9, 11, 13, 15), (1,), "bind", 8),
    ]


def test_ranks_that_mpi_bound_to_one_core_each_get_all_cores_of_the_host(bind: Bind) -> None:
    """#6629: "half of the CPUs used"; #4531: the MPI's own pinning clashed. Open MPI gives two ranks one core each."""
    second = bind(1, [[0], [1]], ALL)
    assert second is not None and second.cpus == (1, 3, 5, 7, 9, 11, 13, 15)


def test_ranks_under_wrappers_use_all_that_any_of_them_has(bind: Bind) -> None:
    masks = [ALL[:8], ALL[8:]]
    shares = [bind(rank, masks, masks[rank]) for rank in (0, 1)]
    # Each wrapper shows its own half only, and still no rank halves its half again.
    assert [share.num_threads for share in shares if share] == [8, 8]


def test_a_cpuset_of_the_starter_is_kept(bind: Bind) -> None:
    allowed = [0, 1, 2, 3]
    first = bind(0, [allowed, allowed], allowed)
    assert first is not None and set(first.cpus) == {0, 2}


def test_local_rank_decides_and_not_the_order_of_ranks(bind: Bind) -> None:
    share = bind(0, [ALL, ALL], ALL, local_ranks=[1, 0])
    assert share is not None and share.memory_nodes == (1,)


def test_a_rank_that_our_launcher_bound_stays(bind: Bind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREBOUND_JOB_ID", "abc")
    assert bind(0, [[4], [5]], ALL) is None
    assert bind(0, [ALL, ALL], ALL) is not None


def test_two_ranks_with_one_local_rank_are_named(bind: Bind) -> None:
    with pytest.raises(CommError, match="rank 0 has 0, rank 1 has 0"):
        bind(0, [ALL, ALL], ALL, local_ranks=[0, 0])


def test_more_ranks_than_cores_are_refused(bind: Bind) -> None:
    with pytest.raises(ConfigError, match="cannot bind 3 ranks to 2 physical cores"):
        bind(0, [[0, 1]] * 3, [0, 1])


@pytest.mark.parametrize(
    ("name", "provider"), [(None, None), ("ccl", None), ("nccl", None), ("gloo", None), ("shm", "shm")]
)
def test_names_of_backends_are_read_as_deepspeed_means_them(name: str | None, provider: str | None) -> None:
    assert comm._provider_of(name) == provider


def test_backends_of_other_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="dist_backend is 'hccl', expected one of") as caught:
        comm.init_distributed("hccl")
    assert "leave it out" in str(caught.value.hint)
