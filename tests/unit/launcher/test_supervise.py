from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from corebound.errors import EXIT_COMM
from corebound.launcher import supervise
from corebound.launcher.binding import Binding
from corebound.launcher.events import Failure
from corebound.launcher.signals import SignalPipe
from corebound.launcher.supervise import Supervisor, _cause_first


class Heard:
    """Keeps what a supervisor tells."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.failures: list[Failure] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)

    def running(self) -> None:
        pass


def ended(rank: int, code: int) -> Any:
    return SimpleNamespace(part=SimpleNamespace(rank=rank), exit_code=code)


def reporting(rank: int, report: dict[str, Any], pid: int) -> Any:
    """A rank whose shim has reported; its status descriptor is the supervisor's own, which `select` never sees."""
    return SimpleNamespace(
        part=SimpleNamespace(rank=rank),
        binding=Binding((rank,), (0,), "bind", 1),
        report=report,
        read_status=lambda: True,
        status_fd=pid,
        exit_code=0,
        pid=pid,
    )


def hear(*reports: dict[str, Any], several_memory_nodes: bool = True) -> Heard:
    heard = Heard()
    events: Any = heard
    with SignalPipe(()) as signals:
        supervisor: Any = Supervisor(
            host="h",
            grace_s=1.0,
            events=events,
            signals=signals,
            several_memory_nodes=several_memory_nodes,
        )
        supervisor._selector = SimpleNamespace(unregister=lambda fd: None)
        supervisor.stop = lambda number, way="own", has_failed=False: None
        for rank, report in enumerate(reports):
            supervisor._on_status(reporting(rank, report, pid=10_000 + rank))
    return heard


def test_of_ranks_that_end_together_the_killed_one_is_the_cause_and_a_lost_peer_the_effect() -> None:
    order = sorted([ended(0, 5), ended(1, 1), ended(2, 137), ended(3, 0)], key=_cause_first)
    assert [rank.part.rank for rank in order if rank.exit_code] == [2, 1, 0]


def test_a_refused_memory_policy_gives_one_warning_a_node() -> None:
    refused = {"policy_error": "Operation not permitted"}
    heard = hear({"cpus": [0], **refused}, {"cpus": [1], **refused})
    assert len(heard.warnings) == 1
    assert "memory policy refused (Operation not permitted)" in heard.warnings[0] and "SYS_NICE" in heard.warnings[0]
    assert heard.failures == []


@pytest.mark.parametrize(("words", "num_warnings"), [(b"{}\n", 0), (b"", 1)])
def test_an_agent_that_did_not_get_to_run_does_not_take_the_launcher_for_lost(
    monkeypatch: pytest.MonkeyPatch, words: bytes, num_warnings: int
) -> None:
    read_fd, write_fd = os.pipe()
    monkeypatch.setattr(supervise, "_CONTROL_FD", read_fd)
    heard: Any = Heard()
    try:
        with SignalPipe(()) as signals:
            supervisor: Any = Supervisor(host="h", grace_s=1.0, events=heard, signals=signals, lost_s=0.0)
            supervisor.stop = lambda number, way="own", has_failed=False: None
            os.write(write_fd, words)
            supervisor._check_launcher()
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert len(heard.warnings) == num_warnings


def test_where_memory_has_one_node_a_refused_policy_is_not_worth_a_word() -> None:
    assert hear({"cpus": [0], "policy_error": "Operation not permitted"}, several_memory_nodes=False).warnings == []


def test_a_rank_on_other_cpus_than_its_own_is_refused() -> None:
    heard = hear({"cpus": [0, 1], "policy_error": None})
    assert heard.failures[0].render() == "rank 0 on h (pid 10000) runs on CPUs 0-1 where 0 was to be set"
    assert heard.failures[0].exit_code == 4


def test_a_rank_that_could_not_be_started_says_why() -> None:
    heard = hear({"error": "./x: Permission denied"})
    assert heard.failures[0].reason == "could not be started: ./x: Permission denied"


def test_a_rank_whose_end_was_missed_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_child(pid: int, options: int) -> tuple[int, int]:
        raise ChildProcessError

    monkeypatch.setattr("corebound.launcher.supervise.os.waitpid", no_child)
    heard: Any = Heard()
    rank = reporting(3, {}, pid=10_003)
    rank.exit_code = None
    rank.drain = lambda timeout_s: None
    rank.stderr = SimpleNamespace(tail=lambda: ["last words"])
    with SignalPipe(()) as signals:
        supervisor = Supervisor(host="h", grace_s=1.0, events=heard, signals=signals)
        supervisor._ranks = [rank]
        assert supervisor.run() == 4
    assert [failure.reason for failure in heard.failures] == ["ended without a status"]
    assert heard.failures[0].tail == ("last words",)


def test_an_interrupt_that_arrived_with_the_part_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C within the first tenth of a second was read together with the part, and forgotten."""

    def no_child(pid: int, options: int) -> tuple[int, int]:
        raise ChildProcessError

    monkeypatch.setattr("corebound.launcher.supervise.os.waitpid", no_child)
    heard: Any = Heard()
    with SignalPipe(()) as signals:
        supervisor = Supervisor(
            host="h",
            grace_s=1.0,
            events=heard,
            signals=signals,
            control=b'{"signal": 2}\n',
        )
        assert supervisor.run() == 130
        assert supervisor.stopping


USER, HOST, FAILURE = b'{"signal": 15}\n', b'{"signal": 15, "cause": "host"}\n', b'{"signal": 15, "cause": "failure"}\n'


def left_s(monkeypatch: pytest.MonkeyPatch, *words: bytes, fails: bool = False, lost_a_peer: bool = False) -> float:
    """Return how long a job has from now on that was told these words, a second after each other."""
    monkeypatch.setattr(supervise, "descendants", lambda pid: ())
    heard: Any = Heard()
    now_s = 1000.0
    monkeypatch.setattr(supervise.time, "monotonic", lambda: now_s)
    with SignalPipe(()) as signals:
        supervisor = Supervisor(host="h", grace_s=30.0, events=heard, signals=signals)
        for word in words:
            now_s += 1.0
            supervisor._control = word
            supervisor._obey()
        now_s += 1.0
        if fails:
            supervisor.fail(Failure(host="h", exit_code=1, reason="exited"))
        if lost_a_peer:
            supervisor._on_end(cast(Any, SimpleNamespace(status_fd=-1, exit_code=EXIT_COMM)))
    assert supervisor._kill_at_s is not None and supervisor._give_up_at_s is not None
    assert supervisor._give_up_at_s >= supervisor._kill_at_s
    return supervisor._kill_at_s - now_s


def test_a_service_has_its_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_s(monkeypatch, USER) == left_s(monkeypatch, HOST) == 29.0
    # A host that is stopped, and then the launcher as well: nobody asked twice.
    assert left_s(monkeypatch, HOST, USER) == 28.0
    assert left_s(monkeypatch, USER, USER) <= 0


def test_after_a_failure_here_or_elsewhere_nobody_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_s(monkeypatch, fails=True) == 2.0
    assert left_s(monkeypatch, FAILURE) == 1.0
    assert left_s(monkeypatch, USER, FAILURE) == 1.0
    assert left_s(monkeypatch, HOST, lost_a_peer=True) == 2.0
