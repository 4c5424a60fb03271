"""A failure on one host is told on all hosts: soon, by name, as the same kind of error."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from multiproc import comm_tasks as tasks
from multiproc.rank_harness import HOST_LINKS, Outcome, Ranks, start_hosts, start_ranks

pytestmark = [pytest.mark.multiproc, pytest.mark.native]

TWO_BY_TWO = [[0, 1], [2, 3]]
CALLS = ["all_reduce", "all_gather", "broadcast", "barrier"]


def outcomes_after_killing(job: Ranks, rank: int, operation: str, num_elements: int = 50_000) -> list[Outcome]:
    """Kill a rank while all are in an endless series of one operation; return what the others get within 5 s."""
    job.run(tasks.join, timeout_s=60)
    job.start(tasks.call_for_ever, "world", operation, num_elements)
    time.sleep(0.5)
    job.kill(rank)
    others = [other for other in range(len(job.processes)) if other != rank]
    start = time.monotonic()
    outcomes = job.finish(ranks=others, timeout_s=5)
    assert time.monotonic() - start < 5
    return outcomes


@pytest.mark.parametrize("link", HOST_LINKS)
@pytest.mark.parametrize(
    ("rank", "operation"), [(0, "all_reduce"), (1, "all_gather"), (2, "barrier"), (3, "all_reduce"), (3, "broadcast")]
)
def test_a_rank_killed_on_either_host_is_named_by_all_others_within_five_seconds(
    rank: int, operation: str, link: str
) -> None:
    with start_hosts(TWO_BY_TWO, COREBOUND_HOST_LINK=link) as job:
        for outcome in outcomes_after_killing(job, rank, operation):
            assert outcome.error_type == "PeerLostError", outcome
            assert f"hierarchical {operation} on rank" in outcome.error
            assert f"rank {rank} (host {rank // 2}" in outcome.error, outcome


@pytest.mark.parametrize("link", HOST_LINKS)
def test_a_killed_rank_is_named_when_one_rank_of_each_host_uses_the_network(link: str) -> None:
    with start_hosts(TWO_BY_TWO, COREBOUND_HOST_LINK=link) as job:
        for outcome in outcomes_after_killing(job, 2, "all_reduce", num_elements=16):
            assert outcome.error_type == "PeerLostError", outcome
            assert "rank 2 (host 1" in outcome.error, outcome


@pytest.mark.parametrize("link", HOST_LINKS)
@pytest.mark.parametrize("rank", [3, 2])
def test_the_only_rank_of_a_host_is_named_although_nobody_saw_it_die(rank: int, link: str) -> None:
    with start_hosts([[0, 1], [2], [3]], COREBOUND_HOST_LINK=link) as job:
        for outcome in outcomes_after_killing(job, rank, "all_reduce"):
            assert outcome.error_type == "PeerLostError", outcome
            assert f"rank {rank} (host {rank - 1})" in outcome.error, outcome


@pytest.fixture(scope="module", params=HOST_LINKS)
def job(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    with start_hosts(TWO_BY_TWO, COREBOUND_HOST_LINK=request.param) as ranks:
        ranks.run(tasks.join, timeout_s=60)
        for name in ("late", "host", "split", "across", "left", "stopped"):
            ranks.run(tasks.make_group, name, [0, 1, 2, 3], tasks.PAGE, "hierarchical")
        yield ranks


def test_a_late_rank_is_named_on_all_hosts_and_told_who_gave_up(job: Ranks) -> None:
    job.start(tasks.call, "late", "all_reduce", timeout_s=0.5, ranks=[0, 1, 2])
    for outcome in job.finish(ranks=[0, 1, 2], timeout_s=6):
        assert outcome.error_type == "CommTimeoutError", outcome
        assert "waited 0.5 s for rank 3 (host 1, pid" in outcome.error
    job.start(tasks.call, "late", "all_reduce", ranks=[3])
    (outcome,) = job.finish(ranks=[3], timeout_s=5)
    assert outcome.error_type == "CommTimeoutError"
    assert "rank 2 (host 1" in outcome.error
    assert " for rank 3 (host 1, pid" in outcome.error
    job.start(tasks.call, "late", "barrier", ranks=[0])
    (outcome,) = job.finish(ranks=[0], timeout_s=1)
    assert outcome.error_type == "CommTimeoutError"


def test_a_host_that_is_late_as_a_whole_is_named(job: Ranks) -> None:
    job.start(tasks.call, "host", "all_reduce", timeout_s=0.5, ranks=[0, 1])
    for outcome in job.finish(ranks=[0, 1], timeout_s=6):
        assert outcome.error_type == "CommTimeoutError", outcome
        assert "waited 0.5 s for rank " in outcome.error
        assert "(host 1)" in outcome.error
    job.start(tasks.call, "host", "all_reduce", ranks=[2, 3])
    for outcome in job.finish(ranks=[2, 3], timeout_s=6):
        assert outcome.error_type == "CommTimeoutError", outcome


def test_a_host_that_stands_still_is_a_timeout(job: Ranks) -> None:
    job.kill(2, signal.SIGSTOP)
    job.kill(3, signal.SIGSTOP)
    job.start(tasks.call, "stopped", "all_reduce", timeout_s=0.5, ranks=[0, 1])
    outcomes = job.finish(ranks=[0, 1], timeout_s=6)
    job.kill(2, signal.SIGCONT)
    job.kill(3, signal.SIGCONT)
    for outcome in outcomes:
        assert outcome.error_type == "CommTimeoutError", outcome
        assert "(host 1)" in outcome.error


def test_members_of_one_host_that_disagree_are_told(job: Ranks) -> None:
    job.start(tasks.call, "split", "all_reduce", 100, ranks=[0, 2, 3])
    job.start(tasks.call, "split", "all_reduce", 50, ranks=[1])
    outcomes = job.finish(timeout_s=6)
    assert {outcome.error_type for outcome in outcomes} == {"CommError"}, outcomes
    assert any("has 400 bytes of float32" in o.error and "has 200 bytes of float32" in o.error for o in outcomes)


def test_hosts_that_disagree_are_told_after_the_timeout(job: Ranks) -> None:
    job.start(tasks.call, "across", "all_reduce", 100, timeout_s=0.5, ranks=[0, 1])
    job.start(tasks.call, "across", "all_reduce", 50, timeout_s=0.5, ranks=[2, 3])
    outcomes = job.finish(timeout_s=6)
    assert {outcome.error_type for outcome in outcomes} == {"CommError"}, outcomes
    for outcome in outcomes:
        assert "all_reduce of 400 bytes of float32" in outcome.error
        assert "all_reduce of 200 bytes of float32" in outcome.error


def test_a_member_that_left_is_a_lost_peer(job: Ranks) -> None:
    job.start(tasks.leave, "left", ranks=[3])
    job.finish(ranks=[3])
    job.start(tasks.call, "left", "barrier", ranks=[0, 1, 2])
    for outcome in job.finish(ranks=[0, 1, 2], timeout_s=6):
        assert outcome.error_type == "PeerLostError", outcome
        assert "rank 3 (host 1, pid" in outcome.error
    job.run(tasks.call, "world", "all_reduce")


def test_asked_for_it_serves_one_host_and_hosts_of_one_rank_too() -> None:
    with start_ranks(2) as job:
        assert [state["name"] for state in job.run(tasks.join, "hierarchical", timeout_s=60)] == ["hierarchical"] * 2
        assert job.run(tasks.hosts_of, "world") == [[[0, 1]]] * 2
        assert len(set(job.run(tasks.mix_operations, "world", 40, seed=1))) == 1
    with start_hosts([[0], [1]]) as job:
        assert [state["name"] for state in job.run(tasks.join, "auto", timeout_s=60)] == ["gloo"] * 2
        job.run(tasks.make_group, "apart", [0, 1], tasks.PAGE, "hierarchical")
        assert job.run(tasks.hosts_of, "apart") == [[[0], [1]]] * 2
        assert len(set(job.run(tasks.mix_operations, "apart", 40, seed=1))) == 1


def test_shared_memory_that_spans_no_hosts_is_an_error_when_asked_for() -> None:
    with start_hosts([[0, 1], [2]]) as job:
        job.start(tasks.join, "shm")
        for outcome in job.finish(timeout_s=60):
            assert outcome.error_type == "CommError"
            assert outcome.error.startswith("COREBOUND_COMM=shm: rank ")


def test_too_little_shared_memory_on_one_host_means_gloo_for_all() -> None:
    with start_hosts(TWO_BY_TWO) as job:
        job.start(tasks.limit_file_size, 100_000, ranks=[2, 3])
        job.finish(ranks=[2, 3])
        states = job.run(tasks.join, timeout_s=60)
        assert [state["name"] for state in states] == ["gloo"] * 4
        assert "/dev/shm is too small" in " ".join(line for state in states for line in state["log"])
        job.run(tasks.limit_file_size, None)
        job.run(tasks.call, "world", "all_reduce")


@pytest.mark.parametrize("link", HOST_LINKS)
def test_hosts_whose_processors_add_differently_still_hold_identical_bits(link: str) -> None:
    with start_hosts(TWO_BY_TWO, COREBOUND_HOST_LINK=link) as job:
        job.start(tasks.force_isa, "generic", ranks=[0, 1])
        job.finish(ranks=[0, 1])
        job.run(tasks.join, timeout_s=60)
        digests = job.run(tasks.check_level_sums, "world", "bfloat16", [1, 33, 4097], 0)
        assert digests[0] == digests[1] == digests[2] == digests[3]


def test_the_all_reduce_can_be_compiled() -> None:
    with start_hosts(TWO_BY_TWO) as job:
        job.run(tasks.join, timeout_s=60)
        job.run(tasks.compile_all_reduce, "world")
