"""Launches on machines that QEMU builds, under a kernel that enforces what is set: what did each rank really get?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corebound.topology import read_topology
from topology.boot import Report
from topology.cases import MACHINES, NUM_RANKS, expected_memory
from topology.machine import ODD_MEMORY, ONE_NODE, SNC2_HBM, TWO_SOCKETS, Machine

# The first test also builds the image, and each machine may take BOOT_TIMEOUT_S.
pytestmark = [pytest.mark.topology, pytest.mark.timeout(1500)]

ReportOf = Callable[[str], Report]
BOUND_LAUNCHES = [(name, count) for name, counts in NUM_RANKS.items() for count in counts]
bound_launches = pytest.mark.parametrize(("name", "count"), BOUND_LAUNCHES)


def ranks_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The ranks of a launch that went well, in order, each checked against the plan of the same flags."""
    assert case["exit_code"] == 0, case["messages"]
    ranks = sorted(case["ranks"], key=lambda rank: int(rank["env"]["RANK"]))
    planned = case["plan"]["ranks"]
    assert [int(rank["env"]["RANK"]) for rank in ranks] == [plan["rank"] for plan in planned]
    for rank, plan in zip(ranks, planned, strict=True):
        assert rank["cpus"] == plan["cpus"]
        assert rank["runs_on"] in plan["cpus"]
        assert rank["env"]["OMP_NUM_THREADS"] == str(plan["num_threads"])
        assert rank["env"]["LOCAL_RANK"] == str(plan["local_rank"])
    return ranks


def memory_of(rank: dict[str, Any]) -> tuple[str, list[int]]:
    return rank["policy"]["mode"], rank["policy"]["nodes"]


def nodes_with_pages(rank: dict[str, Any]) -> set[int]:
    return {int(node) for node in rank["pages"]}


def nodes_of_cpus(machine: Machine, rank: dict[str, Any]) -> set[int]:
    return {machine.node_of(cpu) for cpu in rank["cpus"]}


@pytest.mark.parametrize("name", MACHINES)
def test_the_machine_is_seen_as_it_was_built(report_of: ReportOf, name: str) -> None:
    machine, found = MACHINES[name], report_of(name).topology
    assert found["allowed_cpus"] == list(range(machine.num_cpus))
    assert found["sockets"] == list(range(machine.num_sockets))
    assert found["threads_per_core"] == machine.threads_per_core
    for core in found["cores"]:
        first = core["cpus"][0]
        assert first in machine.first_threads()
        assert core["cpus"] == list(range(first, first + machine.threads_per_core))
        assert core["socket"] == machine.socket_of(first)
        assert core["node"] == machine.node_of(first) * machine.num_parts
    assert len(found["cores"]) == machine.num_cpus // machine.threads_per_core
    assert len(found["nodes"]) == len(machine.nodes) * machine.num_parts
    for node in found["nodes"]:
        built = machine.nodes[node["id"] // machine.num_parts]
        assert node["cpus"] == list(built.cpus)
        # The kernel keeps some of it for itself, the most on the node that it started on.
        assert node["memory_bytes"] >> 20 <= built.memory_mib
        assert node["memory_bytes"] >> 20 >= built.memory_mib // machine.num_parts - 120
    pairs = {node: near for node in machine.cpu_nodes() if (near := machine.hbm_of(node)) is not None}
    assert {pair["node"]: pair["hbm_node"] for pair in found["hbm_nodes"]} == pairs


@pytest.mark.parametrize("name", MACHINES)
def test_a_copy_of_its_sysfs_tells_the_same_elsewhere(report_of: ReportOf, name: str, tmp_path: Path) -> None:
    report = report_of(name)
    for path, text in report.tree.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n", encoding="utf-8")
    copy, found = read_topology(tmp_path), report.topology
    assert list(copy.allowed_cpus) == found["allowed_cpus"]
    assert [(node.id, list(node.cpus), node.kind) for node in copy.nodes] == [
        (node["id"], node["cpus"], node["kind"]) for node in found["nodes"]
    ]
    assert [list(core.cpus) for core in copy.physical_cores()] == [core["cpus"] for core in found["cores"]]
    assert [(cache.level, cache.kind, list(cache.cpus)) for cache in copy.caches] == [
        (cache["level"], cache["kind"], cache["cpus"]) for cache in found["caches"]
    ]


@bound_launches
def test_ranks_run_on_whole_cores_of_their_own_and_leave_no_core_idle(
    report_of: ReportOf, name: str, count: int
) -> None:
    machine = MACHINES[name]
    ranks = ranks_of(report_of(name).cases[f"{count} ranks"])
    assert len(ranks) == count
    used = [cpu for rank in ranks for cpu in rank["cpus"]]
    assert sorted(used) == list(machine.first_threads())
    for rank in ranks:
        assert rank["env"]["OMP_NUM_THREADS"] == str(len(rank["cpus"]))
        assert rank["env"]["WORLD_SIZE"] == rank["env"]["LOCAL_WORLD_SIZE"] == str(count)


@bound_launches
def test_a_rank_crosses_a_node_or_socket_only_where_ranks_are_fewer(report_of: ReportOf, name: str, count: int) -> None:
    machine = MACHINES[name]
    for rank in ranks_of(report_of(name).cases[f"{count} ranks"]):
        nodes = nodes_of_cpus(machine, rank)
        if count >= len(machine.cpu_nodes()):
            assert len(nodes) == 1
        if count >= machine.num_sockets:
            assert len({machine.socket_of(cpu) for cpu in rank["cpus"]}) == 1
        if len(nodes) > 1:
            assert set(rank["cpus"]) == set().union(*(machine.cores_of(node) for node in nodes))


@bound_launches
def test_policy_and_pages_are_on_the_memory_of_the_cores(report_of: ReportOf, name: str, count: int) -> None:
    machine = MACHINES[name]
    case = report_of(name).cases[f"{count} ranks"]
    for rank, plan in zip(ranks_of(case), case["plan"]["ranks"], strict=True):
        policy, nodes = expected_memory(machine, nodes_of_cpus(machine, rank))
        assert memory_of(rank) == (policy, nodes)
        assert (plan["memory_policy"], plan["memory_nodes"]) == (policy, nodes)
        assert sum(rank["pages"].values()) == 4 << 20 >> 12
        assert nodes_with_pages(rank) <= set(nodes)
        if policy == "interleave":
            assert nodes_with_pages(rank) == set(nodes)
            assert max(rank["pages"].values()) - min(rank["pages"].values()) <= 8


@bound_launches
def test_only_a_rank_that_crosses_nodes_is_worth_a_warning(report_of: ReportOf, name: str, count: int) -> None:
    case = report_of(name).cases[f"{count} ranks"]
    crossing = count < len(MACHINES[name].cpu_nodes())
    assert len(case["messages"]) == crossing, case["messages"]
    assert not crossing or "fewer ranks than the" in case["messages"][0]


def test_more_ranks_than_cores_are_refused_with_the_counts_that_fit(report_of: ReportOf) -> None:
    case = report_of(TWO_SOCKETS.name).cases["more ranks than cores"]
    assert case["plan_exit_code"] == case["exit_code"] == 2
    assert case["ranks"] == []
    assert "cannot bind 5 ranks to 4 physical cores (CPUs 0,2,4,6)" in case["messages"][0]
    assert any("use 1 to 4 ranks" in line for line in case["messages"])


def test_ranks_that_are_not_bound_share_every_cpu_and_the_kernel_places_pages(report_of: ReportOf) -> None:
    ranks = ranks_of(report_of(TWO_SOCKETS.name).cases["not bound"])
    assert [rank["cpus"] for rank in ranks] == [list(range(8))] * 2
    assert [memory_of(rank) for rank in ranks] == [("default", [])] * 2


def test_a_core_list_is_taken_literally_siblings_included(report_of: ReportOf) -> None:
    ranks = ranks_of(report_of(TWO_SOCKETS.name).cases["core list"])
    assert [rank["cpus"] for rank in ranks] == [[0, 1], [5]]
    assert [rank["env"]["OMP_NUM_THREADS"] for rank in ranks] == ["2", "1"]
    assert [memory_of(rank) for rank in ranks] == [("bind", [0]), ("bind", [1])]
    assert [nodes_with_pages(rank) for rank in ranks] == [{0}, {1}]


def test_a_launch_keeps_to_the_cpus_that_it_was_given(report_of: ReportOf) -> None:
    ranks = ranks_of(report_of(TWO_SOCKETS.name).cases["affinity"])
    # Of the first core only its second thread may be used.
    assert [rank["cpus"] for rank in ranks] == [[1], [4, 6]]
    assert [nodes_with_pages(rank) for rank in ranks] == [{0}, {1}]


def test_a_cpuset_limits_cores_and_memory(report_of: ReportOf) -> None:
    ranks = ranks_of(report_of(TWO_SOCKETS.name).cases["cpuset"])
    assert [rank["cpus"] for rank in ranks] == [[2], [4]]
    # Node 0 may not be used, so the nearest one serves its cores too.
    assert [memory_of(rank) for rank in ranks] == [("preferred", [1]), ("bind", [1])]
    assert [nodes_with_pages(rank) for rank in ranks] == [{1}, {1}]


def test_where_the_kernel_refuses_memory_policies_first_touch_is_kept_with_one_warning(report_of: ReportOf) -> None:
    case = report_of(TWO_SOCKETS.name).cases["policy refused"]
    ranks = ranks_of(case)
    assert [memory_of(rank) for rank in ranks] == [("default", [])] * 2
    # Bound to cores before it touches anything, a rank has its pages at home all the same.
    assert [nodes_with_pages(rank) for rank in ranks] == [{0}, {1}]
    assert len(case["messages"]) == 1
    assert "memory policy refused (Operation not permitted)" in case["messages"][0]


def test_on_one_node_a_refused_memory_policy_is_not_worth_a_warning(report_of: ReportOf) -> None:
    case = report_of(ONE_NODE.name).cases["policy refused"]
    assert [rank["cpus"] for rank in ranks_of(case)] == [[0, 1], [2, 3]]
    assert case["messages"] == []


def test_bound_ranks_get_a_thread_for_each_core_whatever_the_environment_says(report_of: ReportOf) -> None:
    case = report_of(TWO_SOCKETS.name).cases["own thread count"]
    assert [rank["env"]["OMP_NUM_THREADS"] for rank in ranks_of(case)] == ["2", "2"]
    assert len(case["messages"]) == 1
    assert "OMP_NUM_THREADS=7 is replaced" in case["messages"][0]


def test_a_slot_keeps_its_own_cores_whichever_others_are_chosen(report_of: ReportOf) -> None:
    ranks = ranks_of(report_of(TWO_SOCKETS.name).cases["chosen slots"])
    assert [rank["cpus"] for rank in ranks] == [[2], [6]]
    assert [memory_of(rank) for rank in ranks] == [("bind", [0]), ("bind", [1])]


def test_a_slot_for_each_node_puts_each_rank_beside_its_hbm(report_of: ReportOf) -> None:
    ranks = ranks_of(report_of(SNC2_HBM.name).cases["slot for each node"])
    assert [rank["cpus"] for rank in ranks] == [[0, 2], [4, 6], [8, 10], [12, 14]]
    assert [memory_of(rank) for rank in ranks] == [("preferred", [node]) for node in (4, 5, 6, 7)]
    assert [nodes_with_pages(rank) for rank in ranks] == [{4}, {5}, {6}, {7}]


def test_what_does_not_fit_into_hbm_goes_to_the_memory_of_the_same_node(report_of: ReportOf) -> None:
    (rank,) = ranks_of(report_of(SNC2_HBM.name).cases["more than the HBM holds"])
    assert memory_of(rank) == ("preferred", [6])
    pages = {int(node): count for node, count in rank["pages"].items()}
    assert sum(pages.values()) == 160 << 20 >> 12
    assert pages[6] > 64 << 20 >> 12
    assert pages[2] == sum(pages.values()) - pages[6]


def test_hbm_that_a_cpuset_forbids_is_not_used(report_of: ReportOf) -> None:
    ranks = ranks_of(report_of(SNC2_HBM.name).cases["cpuset without HBM"])
    assert [memory_of(rank) for rank in ranks] == [("bind", [node]) for node in range(4)]
    assert [nodes_with_pages(rank) for rank in ranks] == [{0}, {1}, {2}, {3}]


def test_a_node_without_memory_uses_the_nearest_that_has_some(report_of: ReportOf) -> None:
    report = report_of(ODD_MEMORY.name)
    assert [node["kind"] for node in report.topology["nodes"]] == ["dram", "cpu-only", "far"]
    ranks = ranks_of(report.cases["one for each node"])
    assert [rank["cpus"] for rank in ranks] == [[0, 1], [2, 3]]
    assert [memory_of(rank) for rank in ranks] == [("bind", [0]), ("preferred", [0])]
    assert [nodes_with_pages(rank) for rank in ranks] == [{0}, {0}]
    (rank,) = ranks_of(report.cases["over both nodes"])
    assert memory_of(rank) == ("bind", [0])
