from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from corebound.launcher.events import Failure
from corebound.launcher.follow import Follower
from corebound.launcher.frames import LOST_S
from corebound.launcher.signals import SignalPipe


@pytest.mark.parametrize(("words", "lost"), [(b"waiting", False), (b"", True)])
def test_an_agent_whose_words_wait_is_not_lost_however_late_they_are_read(words: bytes, lost: bool) -> None:
    read_fd, write_fd = os.pipe()
    link: Any = SimpleNamespace(
        host="node2",
        ended=False,
        done=None,
        agent_pid=7,
        heard_at_s=time.monotonic() - 2 * LOST_S,
        fileno=lambda: read_fd,
        close=lambda kill=False: setattr(link, "ended", True),
        last_words=lambda: (),
        stop=lambda number: None,
    )
    try:
        with SignalPipe(()) as signals:
            follower = Follower([link], signals, lambda words: None)
            os.write(write_fd, words)
            follower._check()
            follower.close()
    finally:
        os.close(read_fd)
        os.close(write_fd)
    failure = follower.outcome.failure
    assert (failure is not None and "node2" in failure.host) == lost


def link(host: str, told: list[tuple[str, int, str]]) -> Any:
    return SimpleNamespace(
        host=host,
        ended=False,
        done=None,
        agent_pid=7,
        heard_at_s=time.monotonic(),
        stop=lambda number, cause: told.append((host, int(number), cause)),
    )


def test_a_failed_rank_stops_all_hosts_and_not_in_order() -> None:
    told: list[tuple[str, int, str]] = []
    links = [link("node1", told), link("node2", told)]
    with SignalPipe(()) as signals:
        follower = Follower(links, signals, lambda words: None)
        follower._fail(Failure(host="node1", rank=0, pid=8, exit_code=1, reason="exited"))
        follower._check()
    assert told == [("node1", 15, "failure"), ("node2", 15, "failure")]


def test_hosts_that_are_stopped_together_leave_the_others_their_time() -> None:
    told: list[tuple[str, int, str]] = []
    links = [link(host, told) for host in ("node1", "node2", "node3")]
    with SignalPipe(()) as signals:
        follower = Follower(links, signals, lambda words: None)
        for stopped in links[1:]:
            follower._on_event(stopped, {"event": "stopping", "signal": 15})
        follower._check()
    assert told == [("node1", 15, "host"), ("node2", 15, "host"), ("node3", 15, "host")]


@pytest.mark.parametrize(("has_failed", "cause"), [(False, "user"), (True, "failure")])
def test_a_signal_after_a_failure_asks_for_no_more_time(has_failed: bool, cause: str) -> None:
    told: list[tuple[str, int, str]] = []
    with SignalPipe(()) as signals:
        follower = Follower([link("node1", told)], signals, lambda words: None)
        if has_failed:
            follower._fail(Failure(host="node1", rank=0, pid=8, exit_code=5, reason="exited"))
        follower._signals = cast(SignalPipe, SimpleNamespace(read=lambda: [signal.SIGTERM]))
        follower._forward()
    assert told == [("node1", 15, cause)]


def test_a_launch_that_is_stopped_on_one_host_is_stopped_on_all_and_in_order() -> None:
    told: list[tuple[str, int, str]] = []
    links = [link("node1", told), link("node2", told)]
    with SignalPipe(()) as signals:
        follower = Follower(links, signals, lambda words: None)
        follower._on_event(links[1], {"event": "stopping", "signal": 15})
        follower._check()
        follower._on_event(links[1], {"event": "done", "exit_code": 143})
    assert told == [("node1", 15, "host"), ("node2", 15, "host")]
    failure = follower.outcome.failure
    assert failure is not None
    assert (failure.host, failure.exit_code) == ("node2", 143)
    assert "is being stopped on its own host by SIGTERM" in failure.reason
