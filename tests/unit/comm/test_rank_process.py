"""The frame of a rank process: what it prints, when, and how it ends."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from corebound.comm import rank_process
from corebound.comm.base import Collectives
from corebound.comm.rank_process import run_rank
from corebound.comm.shm_handshake import SharedMemoryUnavailableError
from corebound.comm.single import SingleCollectives
from corebound.errors import CommError, HostError, RequestError


class Group(SingleCollectives):
    """Notes what standard error had when it was closed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__()
        self._capsys = capsys
        self.said_before_closing = ""

    def close(self) -> None:
        self.said_before_closing = self._capsys.readouterr().err


@pytest.fixture(autouse=True)
def log_is_restored() -> Iterator[None]:
    logger = logging.getLogger("corebound")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Group:
    made = Group(capsys)
    monkeypatch.setattr(rank_process, "join_launch", lambda: made)
    return made


def be_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def failing(error: BaseException) -> int:
    def work(group: Collectives) -> None:
        raise error

    return run_rank(work)


def test_work_that_succeeds_gives_0_and_closes_the_group(group: Group) -> None:
    seen: list[Collectives] = []
    assert run_rank(seen.append) == 0
    assert seen == [group]


def test_an_error_is_printed_before_the_group_is_closed(group: Group) -> None:
    assert failing(HostError("no room", hint="make some")) == 3
    assert group.said_before_closing == "error: no room\n\nhint: make some\n"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", [RequestError("too long"), SharedMemoryUnavailableError("too small")])
def test_what_every_rank_raises_is_said_once(
    monkeypatch: pytest.MonkeyPatch, group: Group, rank: int, error: RequestError
) -> None:
    be_rank(monkeypatch, rank)
    assert failing(error) == (0 if rank else error.exit_code)
    assert group.said_before_closing == ("" if rank else f"error: {error.message}\n")


def test_what_one_rank_raises_is_said_by_that_rank(monkeypatch: pytest.MonkeyPatch, group: Group) -> None:
    be_rank(monkeypatch, 1)
    assert failing(CommError("rank 0 died")) == 5
    assert group.said_before_closing == "error: rank 0 died\n"


def test_an_interrupt_is_one_line_with_rank_and_host_and_130(monkeypatch: pytest.MonkeyPatch, group: Group) -> None:
    be_rank(monkeypatch, 1)
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    assert failing(KeyboardInterrupt()) == 130
    (line,) = group.said_before_closing.splitlines()
    assert "[r1/2 node7] " in line and line.endswith("interrupted")


def test_an_unexpected_error_shows_its_trace_before_the_group_is_closed(group: Group) -> None:
    assert failing(ZeroDivisionError("by nought")) == 1
    assert "ZeroDivisionError: by nought" in group.said_before_closing


@pytest.mark.parametrize(("code", "said"), [(0, "bye"), (6, "")])
def test_a_rank_that_failed_leaves_without_delay(code: int, said: str) -> None:
    text = (
        "import atexit; from corebound.comm.rank_process import leave\n"
        f"atexit.register(print, 'bye', end=''); leave({code})"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (code, said)


def test_an_error_in_the_environment_needs_no_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert run_rank(lambda group: None) == 2
    assert capsys.readouterr().err.startswith("error: incomplete rank environment")
