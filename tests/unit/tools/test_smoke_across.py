"""Which nodes a launch across them has, and what is run and said when there are too few."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from smoke.across import gather, judge_references, run_across
from smoke.node import Answer, Node
from smoke.visit import Visit
from unit.tools.smoke_nodes import target

ADDRESSES = {"node1": "10.0.0.1", "node2": "10.0.0.2", "node3": "10.0.0.3"}


class Scripted(Node):
    """A node that answers from a function and remembers what it was asked."""

    def __init__(self, answer: Callable[[Sequence[str]], Answer], **values: Any) -> None:
        super().__init__(target(**values))
        self.answer, self.asked = answer, list[list[str]]()

    def run(self, words: Sequence[str], timeout_s: float | None = None) -> Answer:
        """Returns what the test says."""
        self.asked.append(list(words))
        return self.answer(words)


def words_of_all(words: Sequence[str]) -> Answer:
    """Returns what a healthy cluster of two nodes with one rank each answers."""
    text = " ".join(words)
    if "--process" in text:
        rows = [
            {"host": f"host-{number}", "rank": number, "cpus": [0], "num_threads": 1, "memory_policy": "default",
             "memory_nodes": [0], "policy_error": None}
            for number in range(2)
        ]  # fmt: skip
        return Answer(exit_code=0, stdout="\n".join(map(json.dumps, rows)), stderr="")
    if "allreduce" in text:
        row = {"provider": "hierarchical", "bytes": 65536, "num_ranks": 2, "num_hosts": 2, "p50_us": 80.0}
        return Answer(exit_code=0, stdout=json.dumps({"rows": [row]}), stderr="")
    return tokens(5, 6, 7)


def tokens(*ids: int) -> Answer:
    """Returns what a run of the model answers."""
    return Answer(exit_code=0, stdout=json.dumps({"outputs": [{"token_ids": ids}]}), stderr="")


def visit(
    name: str, hosts: Sequence[str], answer: Callable[[Sequence[str]], Answer] = words_of_all, **values: Any
) -> Visit:
    """Returns a node that was visited, with one slot, in a hostfile of these hosts."""
    options = {"host": name, "address": ADDRESSES[name], "job_user": "worker", "user": "worker", **values}
    this = Visit(Scripted(answer, **options), "/tmp/smoke-1")
    binding = {"rank": 0, "slot": 0, "host": "localhost", "cpus": [0], "num_threads": 1}
    this.bindings = [{**binding, "memory_policy": "default", "memory_nodes": []}]
    ranks = [{"rank": number, "host": ADDRESSES[host], "slot": 0} for number, host in enumerate(hosts)]
    this.launch = {"ranks": ranks, "hosts": [{"host": rank["host"], "num_slots": 1} for rank in ranks]}
    this.hostname = f"host-{hosts.index(name)}" if name in hosts else name
    this.reference_answer = tokens(5, 6, 7)
    this.generate_answer = tokens(5, 6, 8)
    return this


def test_two_nodes_are_proven_together_from_the_first_one_of_the_hostfile() -> None:
    hosts = ["node2", "node1"]
    visits = [visit("node1", hosts, dtype="bfloat16"), visit("node2", hosts, dtype="bfloat16")]
    across = gather(visits)
    assert (across.reason, across.left_out, across.first.target.host) == ("", [], "node2")
    run_across(across)
    # The type of the model is compared with what one node said in it, and that only warns.
    assert [(check.host, check.group, check.status) for check in across.checks] == [
        ("node2", "binding", "pass"),
        ("node1", "binding", "pass"),
        ("node2", "all-reduce", "pass"),
        ("node2", "tokens", "pass"),
        ("node2", "tokens", "warn"),
    ]
    assert visits[0].node.asked == []  # type: ignore[attr-defined]  # the fake of this file


def test_a_lost_node_is_left_out_and_ranks_are_numbered_without_it() -> None:
    hosts = ["node1", "node3", "node2"]
    visits = [visit(name, hosts) for name in hosts]
    visits[1].node.lost = "cannot reach it"
    visits[2].hostname = "host-1"
    across = gather(visits)
    assert (across.reason, across.left_out) == ("", ["10.0.0.3"])
    run_across(across)
    assert across.flags()[-2:] == ["--exclude", "10.0.0.3"]
    assert all(check.passed for check in across.checks), across.checks
    assert [(rank["rank"], rank["host"]) for rank in across.ranks] == [(0, "node1"), (1, "node2")]


@pytest.mark.parametrize(
    ("hosts", "values", "reason"),
    [
        (["node1"], {}, "not run: one node"),
        (["node1", "node3"], {}, "not run: fewer than two nodes of the hostfile answer"),
        (["node1", "node2"], {"job_user": ""}, "not run: no cluster_ssh on node1, node2"),
    ],
)
@pytest.mark.parametrize("required", [False, True])
def test_what_cannot_be_run_together_is_said_and_fails_only_where_it_is_required(
    hosts: list[str], values: dict[str, Any], reason: str, required: bool
) -> None:
    names = [name for name in hosts if name != "node3"]
    across = gather([visit(name, hosts, require_cluster=required, **values) for name in names])
    assert across.reason.startswith(reason)
    run_across(across)
    checks = [check for check in across.checks if check.group != "binding"]
    assert [(check.group, check.status) for check in checks] == [
        ("all-reduce", "fail" if required else "skip"),
        ("tokens", "fail" if required else "skip"),
    ]
    # Each node is still asked where its own ranks run.
    assert {check.host for check in across.checks if check.group == "binding"} == set(names)


def test_no_node_at_all_is_no_launch() -> None:
    across = gather([])
    run_across(across)
    assert across.checks == [] and across.to_json()["hosts"] == []


def test_a_failed_launch_over_all_nodes_fails_each_of_its_checks() -> None:
    def broken(words: Sequence[str]) -> Answer:
        return Answer(exit_code=4, stdout="", stderr="rank 1 on node2 was killed")

    hosts = ["node1", "node2"]
    across = gather([visit(name, hosts, broken) for name in hosts])
    run_across(across)
    assert [(check.group, check.status) for check in across.checks] == [
        ("binding", "fail"),
        ("all-reduce", "fail"),
        ("tokens", "fail"),
    ]


def test_a_node_that_says_something_else_with_one_rank_is_named() -> None:
    hosts = ["node1", "node2", "node3"]
    visits = [visit(name, hosts, dtype="bfloat16") for name in hosts]
    visits[0].reference_answer = tokens(5, 9, 9)
    found = {check.host: check for check in judge_references(visits)}
    assert {host: check.status for host, check in found.items()} == {"node1": "fail", "node2": "pass", "node3": "pass"}
    assert found["node1"].name == "one rank says what it says on node2"
    assert "expected 6 7, found 9 9" in found["node1"].detail
    visits[2].reference_answer = Answer(exit_code=6, stdout="", stderr="model.safetensors: damaged")
    found = {check.host: check for check in judge_references(visits)}
    assert found["node3"].status == "fail" and "damaged" in found["node3"].detail
