"""The machines are those of tests/fixtures/topology_trees.py; figures in brackets are what others got wrong there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.errors import ConfigError
from corebound.launcher.binding import arrange, bind, omp_num_threads
from corebound.launcher.corelist import parse_core_list, render_core_list
from corebound.topology import Cpu, IsaReport, Memory, NumaNode, Topology, read_topology
from fixtures.topology_trees import write_machine

GIB = 1 << 30


SHM = Path("/dev/shm")


@cache
def named(name: str) -> Topology:
    """The topology of a fixture tree, written once and in memory: a large machine has thousands of small files."""
    with TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as directory:
        return read_topology(write_machine(name, Path(directory)))


def machine(nodes: Sequence[Sequence[int]], *, sockets: Sequence[int] | None = None) -> Topology:
    """One-thread cores by node; each node is a socket of its own unless said otherwise."""
    socket_of = dict(enumerate(sockets if sockets is not None else range(len(nodes))))
    cpus = tuple(Cpu(cpu, cpu, socket_of[node], node, (cpu,)) for node, members in enumerate(nodes) for cpu in members)
    return Topology(
        allowed_cpus=tuple(sorted(cpu.id for cpu in cpus)),
        cpus=cpus,
        nodes=tuple(NumaNode(node, tuple(members), 64 * GIB) for node, members in enumerate(nodes)),
        sockets=tuple(sorted(set(socket_of.values()))),
        caches=(),
        isa=IsaReport("none"),
        memory=Memory(64 * GIB, 64 * GIB),
    )


def rows(topology: Topology, num_ranks: int, core_list: str | None = None) -> list[str]:
    cores = None if core_list is None else parse_core_list(core_list)
    return [
        f"{render_core_list(one.cpus)} {one.memory_policy} {render_core_list(one.memory_nodes)} x{one.num_threads}"
        for one in bind(topology, num_ranks, cores)
    ]


@pytest.mark.parametrize(
    ("name", "num_ranks", "expected"),
    [
        ("xeon-2s-ht", 2, ["0-55 bind 0 x56", "56-111 bind 1 x56"]),
        ("xeon-2s-ht", 1, ["0-111 interleave 0-1 x112"]),
        ("xeon-2s-ht", 3, ["0-27 bind 0 x28", "28-55 bind 0 x28", "56-111 bind 1 x56"]),
        ("hbm-cache", 2, ["0-7 bind 0 x8", "8-15 bind 1 x8"]),
        ("flat-hbm", 2, ["0-55 preferred 2 x56", "56-111 preferred 3 x56"]),
        ("flat-hbm", 1, ["0-111 interleave 2-3 x112"]),
        # Even CPUs on one socket, odd on the other [both ranks straddled, without a memory policy].
        ("interleaved", 2, ["0,2,4,6,8,10,12,14 bind 0 x8", "1,3,5,7,9,11,13,15 bind 1 x8"]),
        # Node ids 0 and 8 [the second was never seen].
        ("sparse-nodes", 2, ["0-3 bind 0 x4", "4-7 bind 8 x4"]),
        ("fake-numa", 2, ["0-3 bind 0-1 x4", "4-7 bind 2-3 x4"]),
        ("fake-numa", 1, ["0-7 interleave 0-3 x8"]),
        ("adjacent-smt", 2, ["0,2,4,6 bind 0 x4", "8,10,12,14 bind 1 x4"]),
        ("cpu-only-node", 2, ["0-3 bind 0 x4", "4-7 preferred 0 x4"]),
        ("offline", 2, ["0-1 bind 0 x2", "2,7 bind 0 x2"]),
        ("container-6-of-128", 2, ["4-5 bind 0 x2", "6 bind 0 x1"]),
        ("cgroup-v1-hybrid", 2, ["8-9 bind 1 x2", "10-11 bind 1 x2"]),
        ("vm", 3, ["0-1 bind 0 x2", "2 bind 0 x1", "3 bind 0 x1"]),
        ("nothing", 2, ["0-1 default  x2", "2-3 default  x2"]),
        (
            "snc4",
            4,
            [f"{28 * rank}-{28 * rank + 27} interleave {2 * rank}-{2 * rank + 1} x28" for rank in range(4)],
        ),
        # Two ranks on one socket, one on the other: nobody crosses sockets.
        ("snc4", 3, ["0-27 interleave 0-1 x28", "28-55 interleave 2-3 x28", "56-111 interleave 4-7 x56"]),
        ("snc4", 8, [f"{14 * node}-{14 * node + 13} bind {node} x14" for node in range(8)]),
        ("epyc-nps4", 2, ["0-63 interleave 0-3 x64", "64-127 interleave 4-7 x64"]),
    ],
)
def test_ranks_take_whole_cores_near_their_memory(name: str, num_ranks: int, expected: list[str]) -> None:
    assert rows(named(name), num_ranks) == expected


def test_no_core_stays_idle_when_ranks_do_not_divide_the_cores() -> None:
    """DeepSpeed, 3 ranks on 8 cores: "2 cores each, cores 6,7 idle"."""
    # [2 cores each, and cores 6 and 7 idle]
    assert rows(machine([range(4), range(4, 8)]), 3) == ["0-1 bind 0 x2", "2-3 bind 0 x2", "4-7 bind 1 x4"]
    assert rows(machine([range(5)]), 2) == ["0-2 bind 0 x3", "3-4 bind 0 x2"]


def test_an_explicit_list_is_split_along_nodes() -> None:
    """DeepSpeed, list 0-1,4-7: "rank 0 = 0,1,4 straddles although an aligned split is possible"."""
    # [rank 0 got 0,1,4]
    assert rows(machine([range(4), range(4, 8)]), 2, "0-1,4-7") == ["0-1 bind 0 x2", "4-7 bind 1 x4"]


def test_an_explicit_list_is_used_literally_with_siblings_and_gaps() -> None:
    topology = named("adjacent-smt")
    assert rows(topology, 1, "0-1,4") == ["0-1,4 bind 0 x3"]
    assert rows(topology, 2, "1,3,8-9") == ["1,3 bind 0 x2", "8-9 bind 1 x2"]


def test_an_explicit_list_must_be_available() -> None:
    """rocm-systems #6712: "cpu argument out of range" with a narrowed affinity."""
    topology = named("container-6-of-128")
    with pytest.raises(ConfigError, match=r"CPUs 0-3 are not available to this process \(available: 4-6,68-70\)"):
        bind(topology, 1, (0, 1, 2, 3, 4))


def test_more_ranks_than_cores_name_the_counts_that_would_work() -> None:
    with pytest.raises(ConfigError, match=r"cannot bind 3 ranks to 2 physical cores \(CPUs 0-1\)") as caught:
        bind(machine([range(2)]), 3)
    assert caught.value.hint is not None and caught.value.hint.startswith("use 1 or 2 ranks")
    with pytest.raises(ConfigError) as caught:
        bind(machine([range(9)]), 2, (5,))
    assert caught.value.hint is not None and caught.value.hint.startswith("use 1 rank,")


def test_fewer_ranks_than_nodes_keep_sockets_together() -> None:
    """DeepSpeed: "a straddling rank gets no memory policy at all"."""
    topology = machine([[0, 1], [2, 3], [4, 5], [6, 7]], sockets=[0, 0, 1, 1])
    assert rows(topology, 2) == ["0-3 interleave 0-1 x4", "4-7 interleave 2-3 x4"]
    assert rows(topology, 3) == ["0-1 bind 0 x2", "2-3 bind 1 x2", "4-7 interleave 2-3 x4"]


def test_unequal_groups_are_joined_so_that_the_smallest_is_as_large_as_it_can_be() -> None:
    topology = machine([[0, 1, 2, 3, 4, 5], [6], [7], [8, 9, 10, 11]], sockets=[0, 0, 0, 0])
    assert rows(topology, 2) == ["0-5 bind 0 x6", "6-11 interleave 1-3 x6"]


def test_a_tiny_rest_of_a_socket_is_left_idle_and_reported() -> None:
    topology = machine([range(60), [60]])
    assert rows(topology, 2) == ["0-29 bind 0 x30", "30-59 bind 0 x30"]
    warnings = arrange(topology, 2, bind_cores=True).warnings
    assert warnings == ("cores of CPUs 60 stay idle: a rank of their own would slow down all others",)


def test_a_rank_over_several_nodes_is_reported() -> None:
    topology = named("xeon-2s-ht")
    assert arrange(topology, 1, bind_cores=True).warnings == (
        "fewer ranks than the 2 NUMA nodes: local rank 0 has nodes 0-1 (memory: interleave 0-1)",
    )


def test_a_cpu_time_limit_below_the_threads_is_reported() -> None:
    topology = named("cgroup-v1-hybrid")
    assert "2.5 CPUs of time, ranks have 4 threads" in arrange(topology, 2, bind_cores=True).warnings[0]


def test_unbound_ranks_share_all_cpus_and_split_the_threads() -> None:
    shared = arrange(machine([range(4), range(4, 8)]), 2, bind_cores=False)
    assert not shared.bound and shared.warnings == ()
    assert {one.cpus for one in shared.bindings} == {tuple(range(8))}
    assert {(one.num_threads, one.memory_policy) for one in shared.bindings} == {(4, "default")}


def test_unbound_ranks_beyond_the_cores_are_allowed_with_a_warning() -> None:
    shared = arrange(machine([range(2)]), 3, bind_cores=False)
    assert [one.num_threads for one in shared.bindings] == [1, 1, 1]
    assert "ranks share cores" in shared.warnings[0]


def test_automatic_binding_binds_when_it_can_and_shares_when_it_cannot() -> None:
    assert arrange(machine([range(2)]), 2, bind_cores=None).bound
    assert not arrange(machine([range(2)]), 3, bind_cores=None).bound


def test_a_users_thread_count_is_kept_only_where_nothing_is_bound() -> None:
    binding = bind(machine([range(4)]), 1)[0]
    assert omp_num_threads(binding, True, {"OMP_NUM_THREADS": "1"}) == "4"
    assert omp_num_threads(binding, False, {"OMP_NUM_THREADS": "1"}) == "1"
    assert omp_num_threads(binding, False, {}) == "4"


@st.composite
def machines(draw: st.DrawFn) -> Topology:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    sockets = sorted(draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes))))
    numbers = iter(draw(st.permutations(range(sum(sizes)))))
    return machine([sorted(next(numbers) for _ in range(size)) for size in sizes], sockets=sockets)


@given(machines(), st.data())
def test_on_any_machine_ranks_are_disjoint_and_cross_nodes_only_when_they_are_too_few(
    topology: Topology, data: st.DataObject
) -> None:
    num_cores = len(topology.physical_cores())
    num_ranks = data.draw(st.integers(1, num_cores))
    bindings = bind(topology, num_ranks)
    used = [cpu for one in bindings for cpu in one.cpus]
    assert len(bindings) == num_ranks and all(one.cpus for one in bindings)
    assert len(used) == len(set(used))
    idle = set(topology.allowed_cpus) - set(used)
    assert bool(idle) == any("stay idle" in text for text in arrange(topology, num_ranks, bind_cores=True).warnings)
    for one in bindings:
        nodes = {topology.cpu(cpu).node for cpu in one.cpus}
        if len(nodes) > 1:  # then it has all cores of each of them
            assert set(one.cpus) == {cpu for node in nodes for cpu in topology.node(node).cpus}
            assert one.memory_policy == "interleave" and set(one.memory_nodes) == nodes
