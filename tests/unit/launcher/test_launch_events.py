from __future__ import annotations

import json
import os
import signal

import pytest

from corebound.launcher.events import EventWriter, Failure, failure_from_event, failure_of_exit
from corebound.launcher.signals import SignalPipe, describe_status


def failure(code: int, tail: list[str] | None = None, log: str | None = None) -> Failure:
    return failure_of_exit(host="node-b", rank=3, pid=42, code=code, log=log, tail=tail or [])


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "exited with code 1"),
        (128, "exited with code 128"),
        (137, "was killed by SIGKILL"),
        (139, "was killed by SIGSEGV"),
        (255, "exited with code 255"),
    ],
)
def test_exit_codes_are_put_into_words(code: int, text: str) -> None:
    assert describe_status(code) == text


def test_a_failure_names_rank_host_reason_log_and_last_lines() -> None:
    text = failure(3, ["Traceback", "ValueError: x"], "/logs/r3.log").render()
    assert text == (
        "rank 3 on node-b (pid 42) exited with code 3; its output is in /logs/r3.log\n"
        "its last lines:\n    Traceback\n    ValueError: x"
    )


def test_a_killed_rank_gets_the_hint_about_memory() -> None:
    assert "memory ran out" in failure(137).render()


def test_a_script_that_does_not_know_local_rank_gets_the_flag_to_leave_it_out() -> None:
    told = failure(2, ["x.py: error: unrecognized arguments: --local_rank=0"])
    assert "--no_local_rank" in told.render()
    assert failure(2, ["x.py: error: unrecognized arguments: --foo"]).hint is None


def test_events_are_lines_of_json_and_a_failure_survives_the_way() -> None:
    read_fd, write_fd = os.pipe()
    sent = failure(137, ["a", "b"])
    writer = EventWriter(write_fd)
    writer.started({0: 11})
    writer.failed(sent)
    writer.done(137)
    os.close(write_fd)
    with os.fdopen(read_fd) as file:
        started, failed, done = (json.loads(line) for line in file)
    assert started["pids"] == {"0": 11}
    assert failure_from_event(failed) == sent
    assert done["exit_code"] == 137


def test_an_event_without_a_listener_is_not_an_error() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    EventWriter(write_fd).warning("nobody hears this")
    os.close(write_fd)


def test_signals_appear_in_the_pipe_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalPipe((signal.SIGTERM,)) as pipe:
        assert pipe.read() == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert pipe.read() == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalPipe((signal.SIGHUP,)) as pipe:
            os.kill(os.getpid(), signal.SIGHUP)
            assert pipe.read() == []
    finally:
        signal.signal(signal.SIGHUP, before)
