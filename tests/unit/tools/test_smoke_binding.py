"""The comparison of planned with real bindings, by outputs that a launch over two nodes printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smoke.across import judge_all_reduce
from smoke.binding import PlannedRank, judge_binding, planned_ranks
from smoke.node import Answer

BINDINGS: list[dict[str, Any]] = [
    {"rank": 0, "slot": 0, "cpus": [0], "memory_policy": "bind", "memory_nodes": [0], "num_threads": 1},
    {"rank": 1, "slot": 1, "cpus": [1], "memory_policy": "bind", "memory_nodes": [0], "num_threads": 1},
]
LAUNCH: dict[str, Any] = {
    "ranks": [
        {"rank": 0, "host": "10.0.0.1", "slot": 0},
        {"rank": 1, "host": "10.0.0.1", "slot": 1},
        {"rank": 2, "host": "10.0.0.2", "slot": 0},
        {"rank": 3, "host": "10.0.0.2", "slot": 1},
    ]
}


def planned() -> list[PlannedRank]:
    """Returns four ranks on two nodes."""
    return [
        *planned_ranks("node1", "one", "10.0.0.1", LAUNCH, BINDINGS),
        *planned_ranks("node2", "two", "10.0.0.2", LAUNCH, BINDINGS),
    ]


def report(number: int, **values: Any) -> dict[str, Any]:
    """Returns what a rank prints of itself, as planned unless the values say otherwise."""
    place = {"host": "one" if number < 2 else "two", "rank": number, "cpus": [number % 2]}
    memory = {"memory_policy": "bind", "memory_nodes": [0], "policy_error": None, "num_threads": 1}
    return {**place, **memory, **values}


def printed(*rows: dict[str, Any]) -> Answer:
    """Returns the answer of a launch whose ranks printed these, and a line that is no report."""
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    return Answer(exit_code=0, stdout=f"some program's line\n{lines}", stderr="")


def test_ranks_that_run_as_planned_pass_on_every_node() -> None:
    found = judge_binding(planned(), printed(*(report(rank) for rank in (3, 1, 0, 2))))
    assert [(check.host, check.status) for check in found] == [("node1", "pass"), ("node2", "pass")]
    assert found[1].detail == "rank 2 on CPUs 0; rank 3 on CPUs 1"


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"cpus": [0, 1]}, "rank 3 on node2: planned on CPUs 1, found on 0-1"),
        ({"cpus": []}, "rank 3 on node2: planned on CPUs 1, found on none"),
        ({"host": "one"}, "rank 3 on node2: planned on host two, found on one"),
        ({"num_threads": 2}, "rank 3 on node2: planned 1 threads, found 2"),
        ({"memory_policy": "default"}, "rank 3 on node2: planned memory policy bind 0, found default"),
        ({"memory_nodes": [1]}, "rank 3 on node2: planned memory of nodes 0, found 1"),
        ({"rank": 7}, "rank 3 on node2: planned on CPUs 1, found no such rank"),
    ],
)
def test_a_difference_names_rank_host_plan_and_fact(values: dict[str, Any], fault: str) -> None:
    found = judge_binding(planned(), printed(report(0), report(1), report(2), report(3, **values)))
    assert [(check.host, check.status) for check in found] == [("node1", "pass"), ("node2", "fail")]
    assert found[1].detail == fault


def test_a_policy_that_the_kernel_does_not_tell_is_a_warning() -> None:
    hidden = {"memory_policy": "unknown", "policy_error": "Operation not permitted"}
    found = judge_binding(planned(), printed(*(report(rank, **hidden) for rank in range(4))))
    assert {check.status for check in found} == {"warn"}
    assert "memory policy not known (Operation not permitted), planned bind 0" in found[0].detail


def test_every_provider_that_was_measured_is_a_check() -> None:
    rows = [
        {"provider": name, "bytes": 65536, "num_ranks": 4, "num_hosts": 2, "p50_us": 100.0}
        for name in ("gloo", "ccl", "hierarchical")
    ]
    found = judge_all_reduce("node1", Answer(exit_code=0, stdout=json.dumps({"rows": rows}), stderr=""), 2)
    assert [check.name.rpartition(" ")[2] for check in found] == ["gloo", "ccl", "hierarchical"]
    assert all(check.passed for check in found)
    rows += [{**rows[2], "host_link": "ccl"}]
    found = judge_all_reduce("node1", Answer(exit_code=0, stdout=json.dumps({"rows": rows}), stderr=""), 2)
    assert found[3].name == "nodes sum together by hierarchical (ccl)" and found[2].detail.count("bytes") == 1
    rows.pop()
    rows[1]["num_hosts"] = 1
    found = judge_all_reduce("node1", Answer(exit_code=0, stdout=json.dumps({"rows": rows}), stderr=""), 2)
    assert [check.passed for check in found] == [True, False, True]


@pytest.mark.parametrize(("exit_code", "text"), [(5, "{}"), (0, '{"rows": []}'), (0, "no JSON")])
def test_nodes_that_do_not_sum_together_fail(exit_code: int, text: str) -> None:
    (check,) = judge_all_reduce("node1", Answer(exit_code=exit_code, stdout=text, stderr="rank 2 is gone"), 2)
    assert not check.passed and "rank 2 is gone" in check.detail
