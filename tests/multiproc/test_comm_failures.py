"""What goes wrong between processes is named, soon, and on every rank; nothing is left behind."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures.mounting import can_mount
from multiproc import comm_tasks as tasks
from multiproc.rank_harness import start_ranks

pytestmark = [pytest.mark.multiproc, pytest.mark.native]

CALLS = ["all_reduce", "all_gather", "broadcast", "barrier"]


@pytest.mark.parametrize("operation", CALLS)
def test_a_rank_killed_in_an_operation_is_named_by_the_others_within_five_seconds(operation: str) -> None:
    with start_ranks(3) as job:
        job.run(tasks.join, timeout_s=60)
        job.start(tasks.call_for_ever, "world", operation, 50_000)
        time.sleep(0.3)
        job.kill(1)
        start = time.monotonic()
        outcomes = job.finish(ranks=[0, 2], timeout_s=5)
        assert time.monotonic() - start < 5
        for outcome in outcomes:
            assert outcome.error_type == "PeerLostError", outcome
            assert "rank 1 (pid" in outcome.error
            assert f"shm {operation} on rank" in outcome.error


def test_a_rank_killed_under_gloo_is_a_lost_peer_too() -> None:
    with start_ranks(2, COREBOUND_COMM="gloo") as job:
        job.run(tasks.join, "gloo", timeout_s=60)
        job.start(tasks.call, "world", "all_reduce", ranks=[0])
        time.sleep(0.2)
        job.kill(1)
        (outcome,) = job.finish(ranks=[0], timeout_s=10)
        assert outcome.error_type == "PeerLostError"
        assert "gloo all_reduce on rank 0 (400 bytes of float32)" in outcome.error


def test_a_late_rank_under_gloo_is_a_timeout() -> None:
    with start_ranks(2, COREBOUND_COMM="gloo") as job:
        job.run(tasks.join, "gloo", timeout_s=60)
        job.start(tasks.call, "world", "all_reduce", timeout_s=0.3, ranks=[0])
        (outcome,) = job.finish(ranks=[0], timeout_s=10)
        assert outcome.error_type == "CommTimeoutError", outcome


def test_a_rank_killed_in_the_handshake_leaves_no_name_behind() -> None:
    with start_ranks(3) as job:
        job.start(tasks.join_and_die_in_the_handshake, 1)
        outcomes = job.finish(ranks=[0, 2], timeout_s=9)
        assert [outcome.error_type for outcome in outcomes] == ["PeerLostError", "PeerLostError"]
        assert not job.processes[1].is_alive()
        assert job.segments() == []


@pytest.mark.parametrize("delay_s", [0.0, 0.2])
def test_a_rank_killed_while_the_others_join_leaves_nothing_and_hangs_nobody(delay_s: float) -> None:
    with start_ranks(3) as job:
        job.start(tasks.join, "shm", 4, ranks=[0, 1, 2])
        time.sleep(delay_s)
        job.kill(2)
        outcomes = job.finish(ranks=[0, 1], timeout_s=15)
        # The kill may come after the group was made; then the next operation tells.
        for rank, outcome in enumerate(outcomes):
            if not outcome.error_type:
                job.start(tasks.call, "world", "barrier", ranks=[rank])
                (outcome,) = job.finish(ranks=[rank], timeout_s=5)
            assert outcome.error_type in ("PeerLostError", "CommTimeoutError", "CommError"), outcome


def test_timeouts_lost_peers_and_disagreement_break_only_their_group() -> None:
    with start_ranks(3) as job:
        job.run(tasks.join, timeout_s=60)
        for name in ("slow", "split", "left"):
            job.run(tasks.make_group, name, [0, 1, 2], tasks.PAGE)

        job.start(tasks.call, "slow", "all_reduce", timeout_s=0.3, ranks=[0])
        (outcome,) = job.finish(ranks=[0], timeout_s=5)
        assert outcome.error_type == "CommTimeoutError"
        assert "shm all_reduce on rank 0: waited 0.3 s for rank 1 (pid" in outcome.error
        job.start(tasks.call, "slow", "all_reduce", ranks=[1])
        (outcome,) = job.finish(ranks=[1], timeout_s=5)
        assert outcome.error_type == "CommTimeoutError"
        assert "rank 0 (pid" in outcome.error
        assert "gave up waiting for rank 1" in outcome.error
        job.start(tasks.call, "slow", "barrier", ranks=[0])
        (outcome,) = job.finish(ranks=[0], timeout_s=5)
        assert outcome.error_type == "CommTimeoutError"

        job.start(tasks.call, "split", "all_reduce", 100, ranks=[0])
        job.start(tasks.call, "split", "all_reduce", 50, ranks=[1, 2])
        outcomes = job.finish(timeout_s=5)
        assert {outcome.error_type for outcome in outcomes} == {"CommError"}
        assert any("has 400 bytes of float32" in o.error and "has 200 bytes of float32" in o.error for o in outcomes), (
            outcomes
        )

        job.start(tasks.leave, "left", ranks=[2])
        job.finish(ranks=[2])
        job.start(tasks.call, "left", "barrier", ranks=[0, 1])
        for outcome in job.finish(ranks=[0, 1], timeout_s=5):
            assert outcome.error_type == "PeerLostError"
            assert "rank 2 (pid" in outcome.error
            assert "left the group" in outcome.error

        job.run(tasks.call, "world", "all_reduce")


def test_the_time_limit_is_that_of_the_whole_operation_and_not_of_each_chunk() -> None:
    with start_ranks(2) as job:
        job.run(tasks.join, timeout_s=60)
        job.run(tasks.make_group, "dripping", [0, 1], tasks.PAGE)
        # Ten thousands of chunks, of which rank 1 does some between two pauses that are each shorter than the limit.
        job.start(tasks.call, "dripping", "all_gather", 20 * 1024 * 1024, timeout_s=0.6, ranks=[0])
        job.start(tasks.call, "dripping", "all_gather", 20 * 1024 * 1024, ranks=[1])
        end = time.monotonic() + 15
        try:
            while time.monotonic() < end:
                job.kill(1, signal.SIGSTOP)
                time.sleep(0.2)
                job.kill(1, signal.SIGCONT)
                time.sleep(0.005)
                if job.is_finished(0):
                    break
        finally:
            job.kill(1, signal.SIGCONT)
        (outcome,) = job.finish(ranks=[0], timeout_s=5)
        assert outcome.error_type == "CommTimeoutError", outcome
        assert "waited 0.6 s for rank 1 (pid" in outcome.error
        job.finish(ranks=[1], timeout_s=5)


def test_a_closed_group_is_an_error_and_no_crash() -> None:
    with start_ranks(2) as job:
        job.run(tasks.join, timeout_s=60)
        job.run(tasks.make_group, "closed", [0, 1], tasks.PAGE)
        for error in job.run(tasks.closed_group_error, "closed"):
            assert "the group is closed" in error


def test_too_little_shared_memory_is_explained_and_gloo_takes_over() -> None:
    with start_ranks(2) as job:
        job.run(tasks.limit_file_size, 100_000)
        states = job.run(tasks.join, timeout_s=60)
        job.run(tasks.limit_file_size, None)
        assert [state["name"] for state in states] == ["gloo", "gloo"]
        (line,) = [text for state in states for text in state["log"] if text.startswith("collectives:")]
        assert "/dev/shm is too small: 2 ranks need 12.0 MiB (6.0 MiB each)" in line
        assert "--shm-size=1g" in line
        job.run(tasks.call, "world", "all_reduce")


@pytest.mark.skipif(not can_mount(), reason="this machine lacks the right to mount, or unshare")
def test_a_full_file_system_is_an_error_and_no_bus_error(tmp_path: Path) -> None:
    program = f"from multiproc.comm_tasks import open_segment; print(open_segment({str(tmp_path)!r}))"
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -c {shlex.quote(program)}"
    paths = f"{Path(__file__).parents[2] / 'runtime'}:{Path(__file__).parents[1]}"
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert result.stdout.startswith("(4, "), result.stderr
    assert "cannot reserve 3149824 bytes: No space left on device" in result.stdout


def test_shared_memory_asked_for_and_impossible_is_an_error() -> None:
    with start_ranks(2) as job:
        job.run(tasks.join, "gloo", timeout_s=60)
        job.run(tasks.pretend_boot_id, 1, "another machine")
        job.start(tasks.make_group, "apart", [0, 1])
        for outcome in job.finish():
            assert outcome.error_type == "CommError"
            assert "COREBOUND_COMM=shm: the ranks are on 2 machines (ranks 0; 1)" in outcome.error
        assert [made["name"] for made in job.run(tasks.make_group, "auto", [0, 1], provider="auto")] == ["gloo", "gloo"]


def test_a_rank_with_a_long_list_of_cpus_joins_as_the_others_do() -> None:
    with start_ranks(2) as job:
        job.run(tasks.join, "gloo", timeout_s=60)
        job.run(tasks.pretend_many_cpus, 1)
        job.run(tasks.make_group, "long", [0, 1])
        job.run(tasks.call, "long", "all_reduce")


def test_ranks_of_different_variants_do_not_sum_together() -> None:
    with start_ranks(2) as job:
        job.run(tasks.join, "gloo", timeout_s=60)
        job.start(tasks.force_isa, "generic", ranks=[0])
        assert not job.finish(ranks=[0])[0].error_type
        job.start(tasks.force_isa, "avx2", ranks=[1])
        if job.finish(ranks=[1])[0].error_type:
            pytest.skip("this machine lacks a second variant")
        job.start(tasks.make_group, "mixed", [0, 1])
        for outcome in job.finish():
            assert "differ in variant" in outcome.error


def test_two_jobs_of_one_name_at_once_do_not_meet() -> None:
    with start_ranks(2) as first, start_ranks(2, COREBOUND_JOB_ID=first.job_id) as second:
        for job in (first, second):
            job.start(tasks.join, "shm")
        for job in (first, second):
            assert [outcome.error_type for outcome in job.finish(timeout_s=60)] == ["", ""]
        for job in (first, second):
            job.start(tasks.mix_operations, "world", 200, seed=1)
        for job in (first, second):
            outcomes = job.finish()
            assert [outcome.error for outcome in outcomes] == ["", ""]
            assert outcomes[0].value == outcomes[1].value


def test_a_rank_that_never_comes_is_listed_by_all_that_came() -> None:
    with start_ranks(3) as job:
        job.start(tasks.join, "auto", 1.5, ranks=[0, 2])
        for outcome in job.finish(ranks=[0, 2], timeout_s=20):
            assert outcome.error_type == "CommTimeoutError"
            assert "rank 1 did not join within 1.5 s (present: 0 on " in outcome.error
            assert ", 2 on " in outcome.error


def test_without_rank_0_the_others_say_where_they_looked() -> None:
    with start_ranks(2) as job:
        job.start(tasks.join, "auto", 1, ranks=[1])
        (outcome,) = job.finish(ranks=[1], timeout_s=20)
        assert outcome.error_type == "CommTimeoutError"
        assert "rank 0 at 127.0.0.1:" in outcome.error
        assert "did not answer within 1 s" in outcome.error


def test_a_segment_that_exists_is_never_taken_over(tmp_path: Path) -> None:
    with start_ranks(1) as job:
        ((first, second),) = job.run(tasks.open_segment_twice, str(tmp_path))
    assert first[0] == 0
    assert second[0] != 0
    assert second[1].endswith("corebound.test.segment: cannot create: File exists")


def test_a_forced_variant_that_does_not_exist_is_an_error_and_no_reason_to_use_gloo() -> None:
    with start_ranks(2, COREBOUND_ISA="avx9000") as job:
        job.start(tasks.join)
        for outcome in job.finish(timeout_s=60):
            assert outcome.error_type == "ConfigError"
            assert "avx9000" in outcome.error


def test_a_group_without_a_time_limit_works() -> None:
    with start_ranks(2) as job:
        job.run(tasks.join, "auto", float("inf"))
        job.run(tasks.call, "world", "all_reduce")
