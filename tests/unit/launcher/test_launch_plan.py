from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corebound.errors import ConfigError
from corebound.launcher.hostfile import Host, parse_hostfile
from corebound.launcher.plan import LaunchPlan, plan
from corebound.launcher.spec import LaunchSpec
from corebound.topology import Cpu, IsaReport, Memory, NumaNode, Topology

GIB = 1 << 30
HOSTS = "a slots=2\nb slots=1\nc slots=4\n"


def two_nodes(num_cores: int = 4) -> Topology:
    """Two sockets with a NUMA node each and cores of one thread."""
    half = num_cores // 2
    return Topology(
        allowed_cpus=tuple(range(num_cores)),
        cpus=tuple(Cpu(cpu, cpu, cpu // half, cpu // half, (cpu,)) for cpu in range(num_cores)),
        nodes=(NumaNode(0, tuple(range(half)), GIB), NumaNode(1, tuple(range(half, num_cores)), GIB)),
        sockets=(0, 1),
        caches=(),
        isa=IsaReport("none"),
        memory=Memory(GIB, GIB),
    )


def planned(
    *, hosts: str | None = None, topology_of: Callable[[str], Topology | None] = lambda host: two_nodes(), **fields: Any
) -> LaunchPlan:
    def hosts_of(path: Path) -> tuple[Host, ...]:
        assert hosts is not None
        return parse_hostfile(hosts, source=str(path))

    if hosts is not None:
        fields["hostfile"] = Path("hosts")
    return plan(LaunchSpec(command=("python3", "s.py"), **fields), topology_of, hosts_of=hosts_of)


def places(whole: LaunchPlan) -> list[tuple[int, str, int, int]]:
    return [(rank.rank, rank.host, rank.local_rank, rank.slot) for rank in whole.ranks]


def test_one_machine_gets_a_rank_for_each_numa_node_with_cpus() -> None:
    whole = planned(bind_cores_to_rank=True, arguments=("--x", "1"), pass_local_rank=True, env={"A": "b"})
    shared = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "OMP_NUM_THREADS": "2", "A": "b"}
    assert [rank.as_row() for rank in whole.ranks] == [
        {
            "rank": rank,
            "local_rank": rank,
            "host": "localhost",
            "slot": rank,
            "cpus": cpus,
            "memory_nodes": [rank],
            "memory_policy": "bind",
            "num_threads": 2,
            "env": {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared, **meeting},
            "command": ["python3", "s.py", f"--local_rank={rank}", "--x", "1"],
        }
        for rank, cpus in ((0, [0, 1]), (1, [2, 3]))
    ]


def test_ranks_follow_the_order_of_hosts_and_slots() -> None:
    assert places(planned(hosts="b slots=1\na slots=2\n")) == [(0, "b", 0, 0), (1, "a", 0, 0), (2, "a", 1, 1)]


def test_local_ranks_count_within_their_host_however_the_hosts_differ() -> None:
    """DeepSpeed: LOCAL_RANK "wrong when hosts have different slot counts" (rank modulo local size)."""
    whole = planned(hosts=HOSTS)
    assert [rank.local_rank for rank in whole.ranks] == [0, 1, 0, 0, 1, 2, 3]
    assert [rank.env["LOCAL_SIZE"] for rank in whole.ranks] == ["2", "2", "1", "4", "4", "4", "4"]
    assert [rank.env["CROSS_RANK"] for rank in whole.ranks] == ["0", "0", "1", "2", "2", "2", "2"]
    assert {rank.env["WORLD_SIZE"] for rank in whole.ranks} == {"7"}
    assert {rank.env["MASTER_ADDR"] for rank in whole.ranks} == {"a"}


def test_a_chosen_slot_keeps_its_own_cores() -> None:
    whole = planned(hosts="a slots=4\n", include="a:1,3", bind_cores_to_rank=True)
    assert [(rank.local_rank, rank.slot, rank.binding and rank.binding.cpus) for rank in whole.ranks] == [
        (0, 1, (1,)),
        (1, 3, (3,)),
    ]


def test_including_whole_hosts_works_in_a_launch_as_in_the_filter() -> None:
    """DeepSpeed: "`--include worker-0` (documented: all slots) yields an empty resource map"."""
    assert {rank.host for rank in planned(hosts=HOSTS, include="c@a").ranks} == {"a", "c"}
    assert len(planned(hosts=HOSTS, include="c@a").ranks) == 6


def test_the_number_of_accelerators_replaces_the_slots_and_shares_the_whole_machine() -> None:
    """DeepSpeed: --num_gpus gives slots 0..N-1 "even when larger than the file's number"."""
    whole = planned(hosts="a slots=2\n", num_accelerators=1, bind_cores_to_rank=True)
    assert [rank.binding and rank.binding.cpus for rank in whole.ranks] == [(0, 1, 2, 3)]
    assert len(planned(num_accelerators=3).ranks) == 3


def test_the_first_hosts_are_taken_by_number() -> None:
    assert [node.host for node in planned(hosts=HOSTS, num_nodes=2).nodes] == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"hosts": HOSTS, "num_nodes": 4}, "--num_nodes 4: hostfile hosts has 3 hosts"),
        ({"hosts": HOSTS, "num_accelerators": 2}, "--num_accelerators 2: host b has 1 slots"),
        ({"hosts": HOSTS, "include": "a:2"}, "host a has slots 0 to 1, found slot 2"),
        ({"hosts": HOSTS, "no_ssh": True, "node_rank": 3}, "--node_rank: expected 0 to 2 for 3 hosts, found 3"),
        ({"include": "elsewhere"}, "unknown host 'elsewhere'"),
        ({"num_accelerators": 5, "bind_cores_to_rank": True}, "cannot bind 5 ranks to 4 physical cores"),
        ({"bind_core_list": "2-9"}, "CPUs 4-9 are not available"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_reason(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(**fields)
    assert problem in caught.value.message


def test_cores_of_a_host_that_cannot_be_seen_are_left_to_its_agent() -> None:
    whole = planned(hosts="far slots=2\n", topology_of=lambda host: None, bind_cores_to_rank=True)
    assert whole.nodes[0].bound is None
    assert [rank.as_row()["cpus"] for rank in whole.ranks] == [None, None]
    assert all("OMP_NUM_THREADS" not in rank.env for rank in whole.ranks)


def test_the_callers_variables_never_change_a_ranks_place_but_do_set_its_threads() -> None:
    rank = planned(env={"RANK": "9", "OMP_NUM_THREADS": "7"}, bind_cores_to_rank=True).ranks[1]
    assert (rank.env["RANK"], rank.env["OMP_NUM_THREADS"]) == ("1", "7")


def test_settings_without_effect_are_named() -> None:
    assert planned(ssh_port=22, launcher_args="-x").warnings == (
        "--ssh_port has no effect on a launch on this machine alone",
        "--launcher_args has no effect on a launch on this machine alone",
    )
    assert planned(hosts=HOSTS, ssh_port=22).warnings == ()


def test_a_plan_reads_nothing_but_what_it_is_given() -> None:
    asked: list[str] = []

    def topology_of(host: str) -> Topology:
        asked.append(host)
        return two_nodes()

    first = planned(hosts=HOSTS, topology_of=topology_of)
    assert set(asked) == {"a", "b", "c"}
    assert planned(hosts=HOSTS) == first


def test_an_allocation_takes_the_place_of_a_hostfile() -> None:
    spec = LaunchSpec(command=("python3",), launcher="slurm", hosts=(Host("n1", 2), Host("n2", 1)))
    assert places(plan(spec, lambda host: None)) == [(0, "n1", 0, 0), (1, "n1", 1, 1), (2, "n2", 0, 0)]
    assert places(plan(replace(spec, num_accelerators=1), lambda host: None)) == [(0, "n1", 0, 0), (1, "n2", 0, 0)]
    assert places(plan(replace(spec, num_nodes=1), lambda host: None)) == [(0, "n1", 0, 0), (1, "n1", 1, 1)]
    with pytest.raises(ConfigError, match="--num_nodes 3: the allocation has 2 hosts"):
        plan(replace(spec, num_nodes=3), lambda host: None)
